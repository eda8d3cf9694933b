"""Our own models on our own hardware, behind a token stream."""
