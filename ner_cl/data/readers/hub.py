"""Hugging Face Hub datasets and local parquet, arrow, JSON and CSV files, read with `datasets`."""

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

from ner_cl.data.readers.base import Draft, Reader, ReadOptions, ReadReport
from ner_cl.data.readers.records import drafts_of_records
from ner_cl.errors import DataError, first_line
from ner_cl.registry import readers

__all__ = ["HubReader"]

# `datasets` takes seconds to import, so it is imported only where it is used.
Dataset: TypeAlias = Any

_LOCAL = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^#]+))?")


@readers.register("hub")
@final
class HubReader(Reader):
    """Reads `tokens` + `ner_tags` (class labels or strings), or text + spans, row by row.

    The path is a local file, a folder written by `Dataset.save_to_disk`, a folder of parquet files as the Hub has them,
    or `name` or `name:config` of a dataset on the Hub; append `#split` to choose the split ("train" by default).
    """

    suffixes = (".parquet", ".arrow")

    def read(self, path: str, options: ReadOptions, report: ReadReport) -> list[Draft]:
        """Read the sentences of a dataset; see `Reader.read`. Line numbers count rows."""
        return drafts_of_records(enumerate(rows_in(path), start=1), options, report)


def rows_of(dataset: Dataset) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a loaded dataset as records of plain values, with the names of class labels."""
    features = dataset.features or {}  # a stream may not know its columns
    for row in dataset.with_format(None):
        yield {column: _plain(value, features.get(column)) for column, value in row.items() if value is not None}


def rows_in(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set that is named as for `HubReader`, as `rows_of` does."""
    with tempfile.TemporaryDirectory(prefix="ner_cl_", ignore_cleanup_errors=True) as cache:
        yield from rows_of(_load(path, cache))


def _load(path: str, cache: str) -> Dataset:
    """Load one split without progress bars; report any failure as a one-line DataError."""
    import datasets

    name, _, split = path.partition("#")
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = _load_any(name, split, cache)
    except DataError:
        raise
    except Exception as error:  # every file system, server and format behind `datasets` raises its own exceptions
        raise DataError(
            f"{path}: cannot be loaded as a data set ({first_line(error)}); check name, split and network"
        ) from error
    finally:
        if not silent:
            datasets.enable_progress_bars()
    return loaded


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))


def holds_parquet(folder: Path) -> bool:
    """Whether there are parquet files in a folder or in one of its folders, as in a data set fetched from the Hub."""
    return any(path for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern))


def _load_any(name: str, asked: str, cache: str) -> Dataset:
    """Load the split that was asked for, or "train" if none was."""
    import datasets

    split = asked or "train"
    local = Path(name)
    if local.is_dir() and not is_saved(local) and holds_parquet(local):
        return datasets.load_dataset(name, split=split, cache_dir=cache)
    if local.is_dir():
        stored = datasets.load_from_disk(name)
        if isinstance(stored, datasets.DatasetDict):
            return stored[split]
        own = str(stored.split or "train")
        if asked and asked != own:
            raise DataError(f"{name}#{asked}: holds a single data set, {own}, and no splits; leave #{asked} out")
        return stored
    kind = _LOCAL.get(local.suffix.lower())
    if local.is_file() and kind is None:
        raise DataError(f"{name}: is no parquet, arrow, JSON or CSV file; name its format")
    if local.is_file() and split != "train":
        raise DataError(f"{name}#{split}: a file has no splits; leave #{split} out")
    if local.is_file():
        options = {"delimiter": "\t"} if local.suffix.lower() == ".tsv" else {}
        return datasets.load_dataset(kind, data_files=name, split="train", cache_dir=cache, **options)
    match = _HUB_NAME.fullmatch(name)
    if match is None or kind is not None:
        raise DataError(f"{name}: no such file; check the path")
    return datasets.load_dataset(match["name"], match["config"], split=split)


def _plain(value: Any, feature: Any) -> Any:
    """Convert a cell to plain values: class labels to names, a table of columns (a `Sequence` of dict) to rows."""
    from datasets import ClassLabel

    inner = _inner(feature)
    if isinstance(inner, ClassLabel):
        names = dict(enumerate(inner.names))
        return [names.get(item, item) for item in value] if isinstance(value, list) else names.get(value, value)
    if isinstance(value, list):
        return [_plain(item, inner) for item in value] if isinstance(inner, Mapping) else value
    if not isinstance(value, dict) or not value:
        return value
    columns = inner if isinstance(inner, Mapping) else {}
    named = {key: _plain(item, columns.get(key)) for key, item in value.items()}
    if _is_table(value.values()):
        return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
    return named


def _inner(feature: Any) -> Any:
    """The feature of the items of a list, if it is one; older data sets write such a list as `[feature]`."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return getattr(feature, "feature", feature)


def _is_table(columns: Collection[Any]) -> bool:
    return all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1
