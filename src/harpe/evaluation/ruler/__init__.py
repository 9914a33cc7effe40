"""RULER's 13 tasks (Hsieh et al. 2024, arXiv 2404.06654), sample for sample those of NVIDIA/RULER at commit c3f5e3b.

A sample depends on the state of two random number generators at the moment when it is drawn, and the search for the
right size draws from the same two. So every step of the published program that draws a number is taken here too, in the
same order. What is saved is everything that draws none: whole contexts are not tokenised again (`counting`), the
sentences of the essays are found once (`essays`), six million compound words are not built and sorted (`words`), and
one process makes all tasks.
"""
