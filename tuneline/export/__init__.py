"""Export models: merged folders, Ollama Modelfiles, and repositories on the Hub. Independent of runs."""
