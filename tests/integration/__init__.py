"""End-to-end tests: from a recipe to a registered model, checked with other libraries."""
