"""The routes, one module per task or topic."""
