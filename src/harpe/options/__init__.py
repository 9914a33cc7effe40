"""Options as dataclasses, which the command line, Python and YAML share. No torch; the text under a field is its
help."""
