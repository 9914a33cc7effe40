"""Needle tasks: samples, answers by greedy generation, and the grid over length and depth."""
