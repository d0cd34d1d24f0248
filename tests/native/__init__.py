"""Tests of the kernels, ops and plugins in native/."""
