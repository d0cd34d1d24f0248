"""Backends of the service: which kinds exist, which one runs a model, and what replaces it."""
