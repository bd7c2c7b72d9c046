"""Training state: checkpoints, exact resume and best weights."""
