"""Sentences: read and written, checked, cut into steps, and made into batches of word pieces."""
