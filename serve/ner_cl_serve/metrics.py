"""Metrics for Prometheus."""

from collections.abc import Callable
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@final
class Metrics:
    """The metrics of one service; each has its own, so that two services can run in one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        PlatformCollector(registry)
        ProcessCollector(registry=registry)
        self.requests = Counter("ner_cl_requests", "Responses sent.", ["route", "method", "status"], registry=registry)
        self.request_seconds = Histogram(
            "ner_cl_request_seconds", "From a request to its response.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.texts = Counter("ner_cl_texts", "Texts answered.", registry=registry)
        self.characters = Counter("ner_cl_characters", "Characters of texts answered.", registry=registry)
        self.entities = Counter("ner_cl_entities", "Entities found.", ["type"], registry=registry)
        self.abandoned = Counter(
            "ner_cl_abandoned", "Requests whose client left, or that took too long.", registry=registry
        )
        self._queue_tokens = Gauge("ner_cl_queue_tokens", "Word pieces that wait, estimated.", registry=registry)
        self.batch_texts = Histogram(
            "ner_cl_batch_texts", "Texts computed together.", buckets=_TEXTS, registry=registry
        )
        self.batch_seconds = Histogram("ner_cl_batch_seconds", "Time that took.", buckets=_SECONDS, registry=registry)
        self.publications = Counter(
            "ner_cl_publications", "Attempts to publish a model.", ["outcome"], registry=registry
        )
        self._model = Gauge("ner_cl_model", "1 for the model in service.", ["version"], registry=registry)

    def watch_queue(self, pieces: Callable[[], int]) -> None:
        """Asks `pieces` how many word pieces wait whenever metrics are read."""
        self._queue_tokens.set_function(pieces)

    def show_model(self, version: str) -> None:
        """Records which model is in service."""
        self._model.clear()
        self._model.labels(version).set(1)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)
