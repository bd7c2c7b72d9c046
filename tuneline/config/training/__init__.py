"""Training arguments per stage and optimizer."""
