"""`llmmesh export`: what a tenant had us keep, as a fine-tuning set."""
