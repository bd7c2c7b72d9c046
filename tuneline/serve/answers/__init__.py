"""From tokens to answers: text, stop strings, thoughts, tool calls."""
