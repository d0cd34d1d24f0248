"""Families: the parts of an export that depend on the kind of network."""
