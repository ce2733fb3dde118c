"""PyTorch side of the SDK: data, networks, losses, training, evaluation and checkpoints."""
