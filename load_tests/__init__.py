"""Load on a running service, and what the service costs beside the bare session."""
