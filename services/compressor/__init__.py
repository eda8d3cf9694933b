"""The compressor: fewer prompt tokens, same answer."""
