"""Looking at the process from outside its event loop: whether the loop gets on, what blocks it, and what it costs."""
