"""What a model can do: perplexity, needles, RULER and short benchmarks, each in a folder of its own, and statistics.

Reads models and servers, and changes no weights. Comparing runs and writing reports is done elsewhere.
"""
