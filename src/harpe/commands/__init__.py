"""One file a verb, read top to bottom: what `harpe VERB` does with its options and the terminal. What two verbs need
lives below."""
