"""What watches from the side: probes, certificates, metrics, logs, the admin API. Off the path of requests."""
