"""Tests of `tokenfold.runtime.cuda`, which need no GPU."""
