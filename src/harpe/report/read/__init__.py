"""Reads a run directory, of one run or of a comparison, into values. Nothing here knows how a page, a table or a figure
shows them.

A score that was not measured is None ("not run"); a damaged file is an error that names it and says what to do.
"""
