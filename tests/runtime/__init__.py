"""Tests of `tokenfold.runtime`."""
