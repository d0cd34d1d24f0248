"""Verification: exported graphs compute what PyTorch computes."""
