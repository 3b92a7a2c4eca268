"""What a supervisor did, written to files for other programs."""
