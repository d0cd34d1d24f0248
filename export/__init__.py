"""Export: turn a checkpoint into a verified and measured bundle."""
