"""Training: from a batch and a reference to signals, losses and checkpoints."""
