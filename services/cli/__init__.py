"""The `llmmesh` command. It stands above all services and may use their domains and composition roots."""
