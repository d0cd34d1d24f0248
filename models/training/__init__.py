"""Training of the demo models that the project ships."""
