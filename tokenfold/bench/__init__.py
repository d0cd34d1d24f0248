"""`tokenfold bench`: measure the levels of a bundle side by side, in speed and memory."""
