"""Software that runs a model."""
