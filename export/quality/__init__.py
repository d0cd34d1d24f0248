"""Measured quality of the levels: accuracy, recall, or agreement with the unreduced network."""
