"""The L4 tier beside nginx's stream module and HAProxy: ``python -m bench.tier``."""
