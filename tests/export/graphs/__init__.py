"""Tests of `tokenfold.export.graphs`."""
