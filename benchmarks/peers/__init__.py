"""The measured jobs: one module per job, each run in a separate process."""
