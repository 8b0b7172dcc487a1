"""The tagger as an HTTP service; `ner-cl serve MODEL` starts it.

Only this package imports FastAPI. It needs the extra `serve`: `pip install "ner-cl[serve]"`.
"""
