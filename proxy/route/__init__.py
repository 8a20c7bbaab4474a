"""Which route a request takes: pure, by method, path, header fields and query."""
