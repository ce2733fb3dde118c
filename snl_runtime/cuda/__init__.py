"""CUDA access that knows nothing of the product."""
