"""Short benchmarks by lm-eval: its tasks and numbers, with reading, generation and resuming of ours."""
