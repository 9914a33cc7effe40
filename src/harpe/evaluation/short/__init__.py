"""Short benchmarks by lm-eval: its tasks and numbers; reading, generation and resuming are ours.

Tasks are those of lm-eval; `offline` changes nothing but their names and where their rows come from.
"""
