"""Checkpoints of the training state, exact resume and the weights of the best evaluation."""
