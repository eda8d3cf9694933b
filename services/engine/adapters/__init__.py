"""One module per inference library."""
