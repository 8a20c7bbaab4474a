"""What asks the servers: h2load for requests, a client of our own for connections, curl for whether an answer is right."""
