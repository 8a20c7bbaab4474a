"""The servers that are compared: how each is configured and started. A module for each program."""
