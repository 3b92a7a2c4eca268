"""Leases, appends, reads, and the files beside a session."""
