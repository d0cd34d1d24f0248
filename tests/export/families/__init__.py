"""Tests of `tokenfold.export.families`."""
