"""Several methods from one checkpoint on one budget: recipe, plan, workers, statistics. A single run knows nothing of
it."""
