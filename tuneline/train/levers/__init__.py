"""What makes a training step fast and changes no number; each steps aside where it cannot, and is checked first."""
