"""ZenML steps: each one names its inputs and outputs and calls the library."""
