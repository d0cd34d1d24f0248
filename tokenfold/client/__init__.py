"""`tokenfold ingest`: add a folder of images to a gallery of a running server."""
