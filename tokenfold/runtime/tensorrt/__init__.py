"""TensorRT: engines from a bundle's graphs, and running them. No torch in here."""
