"""The runner: starts pipelines, sweeps, searches and scheduled runs. Above the pipelines."""
