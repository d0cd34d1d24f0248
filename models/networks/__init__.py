"""PyTorch networks whose tokens can be reduced, and the layers they are made of."""
