"""The supervisor, its process, the commands and the harness."""
