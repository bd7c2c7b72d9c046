"""Models: sources, loading, quantization, fine-tuning methods and merging. Independent of the training loop."""
