"""Tests of `tokenfold.models.training`."""
