"""Serving: an OpenAI-compatible server, terminal chat and batch prediction for every model that Tuneline makes."""
