"""Families: what the pipeline needs to know of each kind of network."""
