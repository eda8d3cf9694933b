"""The console: web pages for those who pay, on the edge's HTTP door. Rendered here, without any script in the browser."""
