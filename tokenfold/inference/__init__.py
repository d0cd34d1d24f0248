"""Inference on one bundle: bytes to pixels, level, run and scored answer. No queue, no HTTP."""
