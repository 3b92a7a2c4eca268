"""What a supervisor takes of its process: the sessions directory, signals, the service manager."""
