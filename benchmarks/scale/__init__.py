"""The embedded vector store with many entries of many tenants: lookups, memory, and stalls while it works in the background."""
