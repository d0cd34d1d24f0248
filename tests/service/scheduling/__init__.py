"""Tests of `tokenfold.service.scheduling`."""
