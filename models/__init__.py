"""PyTorch networks whose tokens can be reduced, and the reductions themselves."""
