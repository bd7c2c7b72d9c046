"""Dataset registries: location and row format of named datasets, including LlamaFactory's `dataset_info.json`."""
