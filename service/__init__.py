"""The inference service. Imports no torch."""
