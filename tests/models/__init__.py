"""Tests of `tokenfold.models`."""
