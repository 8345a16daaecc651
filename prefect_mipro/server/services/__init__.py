"""The business rules. Ids and timestamps are made here."""
