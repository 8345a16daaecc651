"""The facts: SQLAlchemy Core on SQLite or PostgreSQL."""
