"""A scheduler's decisions, from a piece of work to its outcome."""
