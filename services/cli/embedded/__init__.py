"""Stores that run from packages: a real redis-server, and Qdrant's storage engine behind Qdrant's gRPC API."""
