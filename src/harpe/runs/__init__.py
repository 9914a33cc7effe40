"""The run directory and what goes into it: source, rows, plan, preflight, texts, training of a row, statistics. No verb
lives here."""
