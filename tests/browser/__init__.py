"""Tests of the page in a browser, and the screenshots of the documentation."""
