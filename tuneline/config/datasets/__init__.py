"""Dataset entries: where each dataset is and how its records look, including LlamaFactory's `dataset_info.json`."""
