"""Programs to read and to start from: `python examples/embedded.py`."""
