"""Chat sessions with a loaded model or a server, without a terminal."""
