"""Tests of `tokenfold.client`."""
