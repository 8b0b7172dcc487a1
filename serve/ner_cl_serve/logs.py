"""Structured logs: one JSON object per line on stderr, without the texts that were sent."""

import asyncio
import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, final

__all__ = ["configure_logs"]


def configure_logs(level: int = logging.INFO) -> None:
    """Logs to stderr, one line per record: this package's records from `level` on, and warnings from all others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ner_cl_serve").setLevel(level)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.captureWarnings(True)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is not of a request that was cut off to stop: each of those has a record of its own."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)


@final
class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, event, and the entries of the record's `facts`.

    Of an exception, it logs the type and the lines of code, not the message, which may quote a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The formatted line."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line.update(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = _places(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False, default=str)


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
