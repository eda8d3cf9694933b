"""The cache's tools: warm it, calibrate it, and see, measure or remove what it holds."""
