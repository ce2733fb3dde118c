"""One frame in, one verdict out."""
