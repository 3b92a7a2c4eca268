"""PostgreSQL as a store: each worker process has a server of its own, each test a schema."""
