"""Galleries: vectors, metadata and thumbnails of images, kept in LanceDB."""
