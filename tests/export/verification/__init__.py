"""Tests of `tokenfold.export.verification`."""
