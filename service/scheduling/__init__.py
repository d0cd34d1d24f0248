"""Scheduling: models, levels, queues, costs and the backends that run batches. No HTTP."""
