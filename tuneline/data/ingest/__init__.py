"""Ingestion: local files and Hub datasets, identified by their content and read row by row."""
