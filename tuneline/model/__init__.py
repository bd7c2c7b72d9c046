"""Model loader: where base models come from, how they are held, adapted and merged. Knows nothing of training loops."""
