"""One module per kind of vendor."""
