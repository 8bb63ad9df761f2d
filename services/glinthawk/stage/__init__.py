"""A stage: the weights of a run of layers, and everything but attention over the cache."""
