"""What runs a model: one module per runtime, all of the shape in `backend.py`."""
