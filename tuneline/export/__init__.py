"""Models as others take them: merged folders, Ollama's Modelfile, repositories of a hub. Knows nothing of runs."""
