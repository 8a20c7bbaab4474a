"""Decisions about one request or response, each a small pure object made once from the configuration."""
