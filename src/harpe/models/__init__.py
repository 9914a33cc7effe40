"""Checkpoints of transformers: geometry, hooks, loading, changing positions, exporting.

Neither training nor evaluation; and no mathematics of bases, which is in `bases` and comes here as plain numbers.
"""
