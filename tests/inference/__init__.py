"""Tests of `tokenfold.inference`."""
