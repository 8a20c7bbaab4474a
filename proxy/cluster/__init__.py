"""What the instances of one service, and the tier in front of them, tell each other.

See docs/design/2026-11-23-many-machines.md and docs/explanation/how-datagrams-find-their-instance.md.
"""
