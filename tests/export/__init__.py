"""Tests of `tokenfold.export`."""
