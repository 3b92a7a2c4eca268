"""Looking at the process from outside its event loop: whether the loop gets on, who blocks it, and what it costs."""
