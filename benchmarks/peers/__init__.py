"""What is measured side by side: one job a module, each run in a process of its own."""
