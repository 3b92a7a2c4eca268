"""Who may use a session file: claims, queues, and the arbiter that decides. No bytes of a transcript."""
