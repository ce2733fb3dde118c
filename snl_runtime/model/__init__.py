"""The files a model travels in."""
