"""Tracking: MLflow runs, the model registry, the gate and the ledger of promotions. Knows nothing of training."""
