"""Tests of the load tests in load_tests/."""
