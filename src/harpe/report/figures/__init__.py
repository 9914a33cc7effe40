"""Figures as inline SVG: those of a report page, and those that other commands write as files.

A figure draws values that it is given, or that a table shows; it reads no file and computes no statistics.
"""
