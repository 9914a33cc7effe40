"""The report: one self-contained HTML page, a terminal table and a Markdown table from a run directory."""
