"""Results of sweeps, searches and paper tables in MLflow."""
