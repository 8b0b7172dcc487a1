"""Integrations with other programs; elsewhere in ner_cl, only the command line imports these modules."""
