"""Measurements: `python -m benchmarks.<scenario>` writes benchmarks/results/<scenario>.json."""
