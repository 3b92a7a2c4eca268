"""The distribution: what is in it, and whether it works where there is nothing else: `make package`."""
