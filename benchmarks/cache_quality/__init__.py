"""How often a semantic cache hits and how often it is wrong: the cache's own verdict beside plain similarity thresholds."""
