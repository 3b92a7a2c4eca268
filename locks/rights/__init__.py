"""Rights on session files: claims, their queues, and the arbiter that decides. No bytes of a transcript."""
