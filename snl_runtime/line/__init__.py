"""A stream of parts."""
