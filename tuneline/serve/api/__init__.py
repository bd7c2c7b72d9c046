"""The HTTP front: routes, schemas, streaming, keys, limits, metrics."""
