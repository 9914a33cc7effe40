"""Needle tasks: samples, answers by greedy generation, and the grid over length and depth.

Our own tasks only; those of RULER are in `ruler`.
"""
