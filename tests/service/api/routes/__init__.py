"""Tests of `tokenfold.service.api.routes`."""
