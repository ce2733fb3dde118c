"""Visualizations: listing, reading, preparing, drawing."""
