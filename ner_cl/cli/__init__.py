"""The command line `ner-cl`, one module per command: flags are parsed here, the work is done elsewhere."""
