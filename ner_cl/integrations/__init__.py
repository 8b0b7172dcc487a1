"""Where ner_cl meets other programs; nothing else in ner_cl imports these modules."""
