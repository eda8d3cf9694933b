"""The engine's rules: who gets a slot, and what device time an answer took."""
