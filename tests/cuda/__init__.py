"""Tests of `export.cuda`, most of them without a GPU."""
