"""Tests of `tokenfold.models.networks`."""
