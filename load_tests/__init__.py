"""Load generators for a running service, and comparisons with the bare session."""
