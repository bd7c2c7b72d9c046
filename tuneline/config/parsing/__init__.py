"""Reading YAML and JSON strictly: limits on size and nesting, and line numbers for error messages."""
