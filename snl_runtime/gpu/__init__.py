"""A frame on the GPU."""
