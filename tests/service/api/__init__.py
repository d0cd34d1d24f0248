"""Tests of `tokenfold.service.api`."""
