"""Routing decisions: how hard a request is (`difficulty`), and which models to try at what price (`plan`)."""
