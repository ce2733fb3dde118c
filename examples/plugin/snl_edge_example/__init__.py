"""A frame source and a sink of a third party."""
