"""Intervals, resampling over seeds and documents, and corrections for many comparisons.

Numbers only: no model and no file is read here.
"""
