"""Tests of README.md, docs/ and examples/."""
