"""A stand-in for a model vendor on loopback: the OpenAI wire, answered by the small local model."""
