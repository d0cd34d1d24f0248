"""Tests of `tokenfold.scenes`."""
