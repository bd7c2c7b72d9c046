"""Data preparation: from dataset files to token rows. Independent of models, training and ZenML."""
