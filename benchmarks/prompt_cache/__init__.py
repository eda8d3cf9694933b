"""What prompts cost at four vendors when nobody plans their prefixes, when the vendor does, and when the planner does."""
