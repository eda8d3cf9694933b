"""The router: which model is good enough for a request, and what each one would cost."""
