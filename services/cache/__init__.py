"""The cache: exact and semantic answers from memory, safe by tenant."""
