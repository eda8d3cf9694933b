"""The edge's decisions: the walk of a request, what it cost, and what is written down about it."""
