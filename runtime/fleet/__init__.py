"""Several processes at a glance, and each of them asked: those of a host by their sockets, those of a store by it."""
