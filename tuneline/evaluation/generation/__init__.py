"""Text generation for evaluation: batching, prefill and prefix cache."""
