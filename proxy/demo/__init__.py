"""What `qproxy demo` runs beside the proxy: certificates for the example sites, and three small backends."""
