"""GGUF export: files for llama.cpp, verified by running llama.cpp on them."""
