"""Runs: options, run directory, plan, extension, evaluation of a run, comparison."""
