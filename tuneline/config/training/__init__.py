"""Training arguments of each stage and each optimizer."""
