"""Which vendor is called when, and what its answer cost."""
