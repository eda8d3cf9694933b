"""How long an audit of a million requests takes, and how much memory."""
