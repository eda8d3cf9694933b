"""`llmmesh audit`: where the money of a request log goes, and how much of it is avoidable. Each dollar is claimed once."""
