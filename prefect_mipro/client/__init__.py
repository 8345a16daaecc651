"""The typed client: one definition of every operation, a sync and an async driver."""
