"""Perplexity by position, needle tasks and the statistics that go with them."""
