"""Tests of `tokenfold.service.scheduling.backends`."""
