"""Adapters of the embedder: one module per model runtime."""
