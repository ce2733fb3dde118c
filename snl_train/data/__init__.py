"""Images of good and bad parts: layouts, checks, training batches."""
