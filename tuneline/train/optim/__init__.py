"""The optimizers of `train.optim`."""
