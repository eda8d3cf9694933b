"""The embedder: text to unit vectors, and pairs of texts to probabilities."""
