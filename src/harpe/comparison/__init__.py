"""Several methods from one checkpoint on one budget: recipe, plan, workers, statistics."""
