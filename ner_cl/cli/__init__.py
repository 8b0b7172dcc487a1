"""The command `ner-cl`, a module a verb: flags are read here, what they ask for is done elsewhere."""
