"""The public API: who asks, what may answer, what it cost."""
