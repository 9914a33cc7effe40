"""The run directory and what goes into it: source, rows, plan, texts, training of a row, statistics. No verb."""
