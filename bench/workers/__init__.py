"""Several workers beside one process: processor time for a request, how evenly they share, and memory. ``make bench-workers``."""
