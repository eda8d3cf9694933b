"""Where tiers and prices come from."""
