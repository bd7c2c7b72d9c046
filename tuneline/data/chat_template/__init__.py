"""Chat templates: selection, sandboxed rendering, thinking blocks and checks of what a template supports."""
