"""Tests of `tokenfold.runtime.native`."""
