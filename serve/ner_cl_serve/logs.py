"""Structured logs: a JSON object a line on stderr, without the texts that were sent."""

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, final

__all__ = ["configure_logs"]


def configure_logs(level: int = logging.INFO) -> None:
    """Sends all records of this process to stderr, a line each: this package's, and warnings of everything else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ner_cl_serve").setLevel(level)
    logging.captureWarnings(True)


@final
class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, event, and what the record's `facts` say.

    Of an exception the type and the lines of code are told, but not its message, which may quote a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line.update(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = _places(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False, default=str)


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
