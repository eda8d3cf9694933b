"""The cache's decisions: identity, guards, verdict, lookup."""
