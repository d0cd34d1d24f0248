"""Tests of `tokenfold.bundle`."""
