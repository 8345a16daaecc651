"""The vocabulary: frozen pydantic records, domain and wire format at once."""
