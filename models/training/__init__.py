"""Training scripts of the demo models that ship with the project."""
