"""A model or engine against its reference."""
