"""Gateways on several machines that share their sessions: `compose.yaml`, and `make cluster` for one machine."""
