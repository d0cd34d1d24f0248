"""Tests of `tokenfold.models.demo`."""
