"""Asking a process what it does, and telling it to stop something, while it is too busy to do anything else."""
