"""Tests of `tokenfold.models.checkpoints`."""
