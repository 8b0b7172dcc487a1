"""The tagger: encoder, heads, decoding, and the model folder."""
