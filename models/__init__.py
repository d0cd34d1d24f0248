"""PyTorch side of Tokenfold: networks, token reductions, checkpoints, and training of the demos."""
