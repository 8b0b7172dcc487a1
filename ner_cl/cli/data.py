"""`ner-cl data`: check, convert and split annotated sentences, and delete those a model keeps."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ner_cl.cli.console import emit, emit_json, say, table
from ner_cl.cli.options import Alignment, Format, Json, Overlap, Scheme, Types, names, parse_yaml
from ner_cl.errors import CheckFailed, ConfigError, DataError, ModelError, many
from ner_cl.files import new_folder

if TYPE_CHECKING:  # imported only when a command runs, so that `--help` is fast
    from ner_cl.data.check import CheckReport
    from ner_cl.data.stream import Corpus, Stream
    from ner_cl.types import Sentence

__all__ = ["app"]

app = typer.Typer(help="Check, convert, split or delete annotated sentences.", rich_markup_mode=None)

_PARTS = {"train": ("train",), "dev": ("dev", "valid", "validation", "devel"), "test": ("test",)}


@app.command()
def check(
    paths: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Files, or one folder with train, dev and test files.")
    ],
    format_: Format = "auto",
    scheme: Scheme = "auto",
    types: Types = None,
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Report the contents and problems of a corpus.

    The exit code is 1 if the corpus cannot be trained on as it is.
    """
    from ner_cl.data.check import check as check_corpus

    parts = _named(paths)
    for path in parts.values():
        if not Path(path).exists() and "#" not in path and format_ != "hub":
            raise DataError(f"{path}: no such file; check the path")
    report = check_corpus(
        parts, format=format_, scheme=scheme, types=names(types), alignment=alignment, on_overlap=on_overlap
    )
    emit_json(report.to_json()) if as_json else emit(_text(report))
    if not report.ok:
        found = f"{report.count} problem{'s' if report.count > 1 else ''} found"
        raise CheckFailed(f"{found}; correct the data, then train on them")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    from_: Annotated[str, typer.Option("--from", help="Format of IN: auto, conll, jsonl, docbin or hub.")] = "auto",
    to: Annotated[str, typer.Option("--to", help="Format of OUT: auto, conll, jsonl or docbin.")] = "auto",
    from_scheme: Annotated[
        str,
        typer.Option("--from-scheme", help="Tag scheme of IN, a column file: auto, iob1, iob2, bioes or io."),
    ] = "auto",
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="Tag scheme of OUT, a column file: iob2 (default), iob1, bioes, io."),
    ] = None,
    types: Types = None,
    alignment: Alignment = "error",
) -> None:
    """Convert annotated sentences to another format or tag scheme."""
    from ner_cl.data.readers import read_with_report
    from ner_cl.data.tally import count_mentions
    from ner_cl.data.writers import format_to_write, write_sentences
    from ner_cl.registry import nearest

    if scheme is not None and format_to_write(target, to) != "conll":
        raise ConfigError("--scheme is for column files, and OUT is none; leave it out (--from-scheme is for IN)")
    wanted = names(types)
    sentences, report = read_with_report(
        source, format=from_, scheme=from_scheme, types=wanted, on_overlap="keep", alignment=alignment
    )
    found = count_mentions(sentences)
    for type_ in wanted or ():
        if type_ not in found:
            say(f"note: {source} has no mention of {type_}{nearest(type_, found)}")
    for what, lines in sorted(report.repairs.items()):
        say(f"note: {what}: {len(lines)} (first in line {lines[0]})")
    written = write_sentences(target, sentences, format=to, scheme=scheme or "iob2")
    if written == "conll" and len({sentence.annotated_types for sentence in sentences}) > 1:
        say(
            "note: the sentences are annotated for different types, which column files cannot say; read from this "
            "file, they will count as annotated for all of them"
        )
    say(
        f"{len(sentences)} sentences with {sum(len(sentence.spans) for sentence in sentences)} mentions are in {target}"
    )


@app.command()
def split(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, or folder with train, dev and test files.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="New folder to write: step-01/train.jsonl ... stream.yaml")
    ],
    protocol: Annotated[str, typer.Option("--protocol", help="disjoint, greedy or overlap.")] = "disjoint",
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="LIST", help="Types of each step, such as '[[PER], [LOC, ORG]]'.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option("--order", help="Without --steps: order of types, alphabetical (default), frequency or random."),
    ] = None,
    increment: Annotated[
        int | None, typer.Option("--increment", min=1, help="Without --steps: types per step, 1 by default.")
    ] = None,
    first: Annotated[int | None, typer.Option("--first", min=1, help="Without --steps: types in step 1.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the slices, and of a random order.")] = 13,
    format_: Format = "auto",
    scheme: Scheme = "auto",
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Split a corpus into the data of each step.

    Each step is annotated for its own types only, as in continual learning.
    """
    from ner_cl.data.protocols import allocate, check_protocol
    from ner_cl.data.stream import build_stream, order_types

    chosen_protocol = check_protocol(protocol)
    if steps is not None and (order, increment, first) != (None, None, None):
        raise ConfigError("--steps lists the types of each step; leave --order, --increment and --first out")
    reading = {"format": format_, "scheme": scheme, "alignment": alignment, "on_overlap": on_overlap}
    corpus, files = _corpus(source, reading)
    listed = None if steps is None else _listed_steps(steps)
    chosen = listed or order_types(
        corpus, order=order or "alphabetical", increment=increment or 1, first=first, seed=seed
    )
    stream = build_stream(corpus, chosen, protocol=chosen_protocol, seed=seed)
    _write_stream(target, stream, files, reading, seed)
    _show_split(stream, target, as_json=as_json)
    taken = set(chain(*allocate(corpus.train, chosen, protocol=chosen_protocol, seed=seed)))
    if left := len(corpus.train) - len(taken):
        say(f"note: {left} of {len(corpus.train)} training sentences are in no step")
    if "test" not in files:
        say(f"note: there is no test set; add corpus.test to {target / 'stream.yaml'} before you train on it")


def _show_split(stream: "Stream", folder: Path, *, as_json: bool) -> None:
    """Print the sizes of the steps."""
    if as_json:
        sizes = [{"step": s.number, "types": s.types, "train": len(s.train), "dev": len(s.dev)} for s in stream.steps]
        emit_json({"output": str(folder), "steps": sizes})
        return
    rows = [[step.number, ", ".join(step.types), len(step.train), len(step.dev)] for step in stream.steps]
    emit(table(["step", "types", "train", "dev"], rows, text_columns=2))


def _listed_steps(text: str) -> list[list[str]]:
    """Parse a list of lists of names."""
    listed = parse_yaml(text, "--steps")
    if not (listed and isinstance(listed, list) and all(step and isinstance(step, list) for step in listed)):
        raise ConfigError(f"--steps {text!r}: write a list of lists, such as '[[PER], [LOC, ORG]]'")
    for type_ in chain(*listed):
        if not isinstance(type_, str):
            raise ConfigError(f"--steps {text!r}: {type_!r} is no name; write names such as 'NO' or '1' in quotes")
    return listed


@app.command()
def forget(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
) -> None:
    """Delete the sentences that a model keeps for later steps.

    The model's predictions do not change. Copies elsewhere, such as in the folders of earlier steps, are not touched.
    """
    from ner_cl.model.kept import forget_sentences

    if (model / "steps").is_dir() and not (model / "labels.json").is_file():
        raise ModelError(f"{model}: is a run folder; its models are in {model / 'steps'}/*: forget each of them")
    say(f"{many(forget_sentences(model), 'sentence')} deleted from {model}")


def _named(paths: list[str]) -> dict[str, str]:
    """Map the name of each part to its file."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return _parts_of(Path(paths[0]))
    stems = [Path(path).stem for path in paths]
    return {path if stems.count(stem) > 1 else stem: path for path, stem in zip(paths, stems, strict=True)}


def _parts_of(folder: Path) -> dict[str, str]:
    """Find the files called train, dev and test in a folder, or the splits of a dataset that `datasets` saved there.

    Raises:
        DataError: if there are none, or several files for one part.
    """
    if (folder / "dataset_info.json").is_file():
        return {folder.name: str(folder)}
    if (saved := folder / "dataset_dict.json").is_file():
        try:
            splits = [str(split) for split in json.loads(saved.read_text(encoding="utf-8"))["splits"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{saved}: does not list the splits of a data set; save it again") from error
        part_of = {stem: part for part, stems in _PARTS.items() for stem in stems}
        return {part_of.get(split, split): f"{folder}#{split}" for split in splits}
    parts: dict[str, str] = {}
    for part, stems in _PARTS.items():
        files = sorted(str(path) for path in folder.iterdir() if path.is_file() and path.stem.lower() in stems)
        if len(files) > 1:
            raise DataError(
                f"{folder}: has {len(files)} files for {part} ({', '.join(files)}); name the files one by one"
            )
        if files:
            parts[part] = files[0]
    if not parts:
        raise DataError(f"{folder}: holds no file called train, dev or test; name the files one by one")
    return parts


def _text(report: "CheckReport") -> str:
    splits = report.splits
    rows = [
        [
            name,
            split.format,
            split.scheme or "-",
            split.sentences,
            split.words,
            split.longest,
            sum(split.mentions.values()),
        ]
        for name, split in splits.items()
    ]
    header = ["file", "format", "scheme", "sentences", "words", "longest", "mentions"]
    blocks = [table(header, rows, text_columns=3)]
    types = list(dict.fromkeys(type_ for split in splits.values() for type_ in split.mentions))
    if types:
        counts = [[type_, *(split.mentions.get(type_, 0) for split in splits.values())] for type_ in types]
        blocks.append(table(["mentions", *splits], counts))
    for title, lines in (("problems", report.problems), ("notes", report.notes)):
        if lines:
            blocks.append("\n".join([f"{title}:", *(f"  {line}" for line in lines)]))
    return "\n\n".join([*blocks, *(["no problems"] if report.ok else [])])


def _corpus(source: str, reading: Mapping[str, str]) -> "tuple[Corpus, Mapping[str, str]]":
    """Load the corpus in a file or folder; also return its files by part."""
    from ner_cl.config import CorpusOptions, validate
    from ner_cl.data.corpus import load_corpus

    files = _parts_of(Path(source)) if Path(source).is_dir() else {"train": source}
    if "train" not in files:
        raise DataError(f"{source}: holds no file called train")
    for part in files.keys() - _PARTS:
        say(f"note: {files[part]} is left out; a corpus has train, dev and test")
    files = {part: path for part, path in files.items() if part in _PARTS}
    # Without a test file nothing is scored: the training file replaces it here but is not written as a test set.
    values = {**reading, "test": files["train"], **files}
    options = validate(CorpusOptions, values, "the corpus")
    return load_corpus(options, name=Path(source).stem), files


def _write_stream(
    target: Path, stream: "Stream", files: Mapping[str, str], reading: Mapping[str, str], seed: int
) -> None:
    """Write a folder per step, the test set, and the stream file that `stream.file` reads."""
    import yaml

    from ner_cl.data.writers import write_sentences

    values: dict[str, Any] = {
        "name": stream.corpus_name,
        "corpus": {**reading, **{part: _findable(path) for part, path in files.items()}},
        "steps": [list(step.types) for step in stream.steps],
        "protocol": stream.protocol,
        "seed": seed,
    }
    with new_folder(target) as draft:
        for step in stream.steps:
            folder = draft / f"step-{step.number:02d}"
            folder.mkdir()
            parts: dict[str, tuple[Sentence, ...]] = {"train": step.train, "dev": step.dev}
            for part, sentences in parts.items():
                if part in files:
                    write_sentences(folder / f"{part}.jsonl", sentences)
        if "test" in files:
            write_sentences(draft / "test.jsonl", stream.test)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
        (draft / "stream.yaml").write_text(text, encoding="utf-8")


def _findable(path: str) -> str:
    """Make an existing path absolute; the name of a dataset on the Hub stays as it is."""
    return str(Path(path).absolute()) if Path(path.partition("#")[0]).exists() else path
