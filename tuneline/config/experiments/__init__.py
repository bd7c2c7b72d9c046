"""Many runs from one file: sweeps, hyperparameter searches and the tables of the LlamaFactory paper."""
