"""The tagger as an HTTP service; `ner-cl serve MODEL` starts it.

No other package imports FastAPI. Requires the extra `serve`: `pip install "ner-cl[serve]"`.
"""
