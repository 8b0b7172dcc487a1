"""`ner-cl init`: write a configuration to start from."""

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ner_cl.cli.console import say
from ner_cl.errors import ConfigError
from ner_cl.files import replace_file

__all__ = ["init"]

_TEMPLATE = """\
# A ner-cl configuration. Only `stream` is required; all other values here are the defaults.
#   ner-cl train {quoted} --dry-run      checks configuration and data; writes nothing
#   ner-cl train {quoted}                learns all steps; prints F1 of every type after each
# To override a key: --set training.epochs=3, or the environment variable NER_CL__TRAINING__EPOCHS=3.

seed: 13

encoder:
  name: minilm-l6          # alias, Hugging Face id (bert-base-cased), or folder

head:
  name: {head: <17}  # extendner: one growing output layer; addner: one layer per step; spankl: scores spans

{stream}
strategies:                # how old types are preserved; `ner-cl info` lists all strategies
  - {{name: distill, temperature: 2.0, alpha: auto, mention_weight: 4.0}}
  - {{name: frozen_trunk, layers: auto}}   # keeps embeddings and the lowest layers fixed
{correction}
training:
  epochs: auto             # per step: at most 10, or more if there are few sentences
  batch_tokens: 512        # word pieces per batch, padding included
  optimizer: {{name: adamw, lr: 1.5e-4}}
  precision: auto          # bf16 if the device computes in it, else fp32
  early_stopping: {{patience: 3, tolerance: 1.0}}   # in standard errors of the dev score

gate:
  max_drop: null           # 0.05: stop if the F1 of an old type drops by more than 5 points in a step

output: {output}
"""

_CORRECTION = """\
  - {name: slda, strength: 0.2}   # keeps statistics of each tag, which correct confusions with later types
"""

_OWN_STREAM = """\
stream:                    # which types and sentences arrive in which step
  # CoNLL columns, JSON lines or spaCy DocBin.
  # Looked up under $NER_CL_DATA, then next to this file, then in the working directory.
  # If every step has data of its own: train: [step1.jsonl, step2.jsonl], and no protocol below.
  corpus:
    train: data/train.jsonl
    dev: data/dev.jsonl
    test: data/test.jsonl
  # The new types of each step. Alternatively, replace `steps` by, for instance, order: frequency and increment: 1.
  steps: [[PERSON], [LOCATION]]
  # disjoint: each sentence goes to one step, at random. greedy: to one step, rare types first.
  # overlap: to every step whose types it mentions.
  protocol: disjoint
"""

_PINNED_STREAM = """\
stream:                    # a pinned stream; its keys can be overridden here
  file: {file}
"""


def init(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="File to write.")] = Path("ner-cl.yaml"),
    head: Annotated[str, typer.Option("--head", help="Head of the model: extendner, addner or spankl.")] = "extendner",
    stream: Annotated[
        str | None, typer.Option("--stream", metavar="NAME", help="Pinned stream to use: a name or a file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from ner_cl.config.composition import HeadOptions, default_strategies
    from ner_cl.registry import heads

    heads[head]  # raises ConfigError for an unknown name
    file = None if stream is None else _stream_file(stream)
    if config.exists() and not force:
        raise ConfigError(f"{config}: exists already; use --force to replace it, or name another file")
    section = _OWN_STREAM if file is None else _PINNED_STREAM.format(file=_value(str(file)))
    name = file.stem if file else config.stem
    quoted = shlex.quote(str(config))
    text = _TEMPLATE.format(
        quoted=quoted,
        head=head,
        stream=section,
        correction=_CORRECTION if "slda" in default_strategies(HeadOptions(name=head)) else "",
        output=_value(f"runs/{name}"),
    )
    with replace_file(config) as output:
        output.write(text.encode())
    say(f"{config} is written; look at it, then: ner-cl train {quoted} --dry-run")


def _value(text: str) -> str:
    """Return a string as YAML: plain where it is read back as it is, else quoted."""
    import yaml

    from ner_cl.config.reading import NOT_YAML

    with suppress(*NOT_YAML):
        if yaml.safe_load(f"key: {text}") == {"key": text}:
            return text
    return json.dumps(text)  # its escapes are YAML's, too


def _stream_file(name: str) -> Path:
    """Find the stream file of that name or path; ConfigError with the nearest name if there is none."""
    from ner_cl.registry import nearest

    if Path(name).is_file():
        return Path(name)
    checkout = Path(__file__).parents[2]
    folders = (Path("configs/streams"), checkout / "configs" / "streams")
    known = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}
    if name in known:
        return known[name]
    if known:
        names = sorted(known)
        raise ConfigError(
            f"--stream {name!r}: unknown{nearest(name, names)}; known: {', '.join(names)}, or give a file"
        )
    raise ConfigError(f"--stream {name!r}: no such file, and there is no folder configs/streams here; give a file")
