"""Serve vision transformers with token reduction, at a level chosen per request."""
