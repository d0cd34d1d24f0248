"""Bundles: the folders that export writes, and that the runtime and the service read."""
