"""The tagger: encoder, heads, decoding, and the folder it is kept in."""
