"""The legacy model: the lock file of chat gateways of 2026.5, and a gateway that takes it as those did."""
