"""Tests of `tokenfold.models.reduction`."""
