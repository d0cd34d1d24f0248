"""What runs a model, of the shape in `backend.py`, and which of them does so."""
