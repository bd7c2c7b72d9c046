"""Metrics of generated text: ROUGE, BLEU, overlap and corpus-level scores."""
