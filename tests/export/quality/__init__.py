"""Tests of `tokenfold.export.quality`."""
