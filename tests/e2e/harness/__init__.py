"""Real processes for end-to-end tests: a certificate authority, backends, the proxy, and clients of several makers."""
