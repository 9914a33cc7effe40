"""RULER v2's 12 tasks (NVIDIA/NeMo-Skills, branch chsieh/ruler2 at commit 991a743, nemo_skills/dataset/ruler2).

A sample depends on the state of one random number generator at the moment when it is drawn, and the search for the
right size draws from it too. So every step of the published program that draws a number is taken here too, in the same
order. The four tasks on documents draw from a list whose order the published program leaves to Python's hashes of
texts, which differ from process to process: here that list is sorted, and the samples are those of the published
program with a sorted list.
"""
