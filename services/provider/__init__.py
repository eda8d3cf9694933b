"""Model vendors and our own engine behind one contract."""
