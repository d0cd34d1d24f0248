"""`tokenfold ingest`: a folder of images into a gallery of a running server."""
