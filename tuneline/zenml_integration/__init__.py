"""ZenML integration: stack, orchestrator, strict pipelines and model versions. Below the pipelines."""
