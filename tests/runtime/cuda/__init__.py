"""Tests of `tokenfold.runtime.cuda`, most of them without a GPU."""
