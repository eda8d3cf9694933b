"""Adapters of the cache: one module per store."""
