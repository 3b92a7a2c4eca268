"""Programs to read and to copy: `python examples/embedded.py`."""
