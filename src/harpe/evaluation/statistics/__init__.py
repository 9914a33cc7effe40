"""Intervals, resampling over seeds and documents, and corrections for many comparisons."""
