"""The command line: parser, terminal, signals, and the table of verbs. What a verb does is in `harpe.commands`."""
