"""`ner-cl init`: write a configuration to start from."""

from pathlib import Path
from typing import Annotated

import typer

from ner_cl.cli.console import say
from ner_cl.errors import ConfigError
from ner_cl.files import replace_file

__all__ = ["init"]

_TEMPLATE = """\
# A configuration of ner-cl. Every key but `stream` may be left out: the values here are the defaults.
#   ner-cl train {path} --dry-run      looks at configuration and data, and writes nothing
#   ner-cl train {path}                learns all steps, and prints F1 of every type after each
# Any key can be overridden: --set training.epochs=3, or the environment variable NER_CL__TRAINING__EPOCHS=3.

seed: 13

encoder:
  name: minilm-l6          # an alias, a Hugging Face id (bert-base-cased), or a folder

head:
  name: {head: <17}  # extendner: one output layer that grows; addner: one layer a step; spankl: scores of spans

{stream}
strategies:                # how old types are held; `ner-cl info` lists the names
  - {{name: distill, temperature: 2.0, alpha: 1.0, beta: 1.0}}
  - {{name: frozen_trunk, layers: auto}}   # embeddings and the lowest layers stay as they are

training:
  epochs: auto             # a step: at most 10, more where sentences are few
  batch_tokens: 512        # word pieces of a batch, padding included
  optimizer: {{name: adamw, lr: 1.5e-4, head_lr: 1.0e-3}}
  precision: auto          # bf16 where the device computes in it, else fp32
  early_stopping: {{patience: 3}}

gate:
  max_drop: null           # 0.05 stops when F1 of an old type falls by more than 5 points in a step

output: runs/{name}
"""

_OWN_STREAM = """\
stream:                    # what arrives when
  # CoNLL columns, JSON lines or spaCy DocBin; looked up under $NER_CL_DATA, beside this file, and here.
  corpus:
    train: data/train.jsonl
    dev: data/dev.jsonl
    test: data/test.jsonl
  # The new types of each step. Instead of it: order: frequency, increment: 1.
  steps: [[PERSON], [LOCATION]]
  # disjoint: each sentence to one step, by chance. greedy: to one step, rare types first.
  # overlap: to every step whose types it mentions.
  protocol: disjoint
"""

_PINNED_STREAM = """\
stream:                    # what arrives when: a pinned stream, any key of which can be overridden here
  file: {file}
"""


def init(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="The file to write.")] = Path("ner-cl.yaml"),
    head: Annotated[str, typer.Option("--head", help="extendner, addner or spankl.")] = "extendner",
    stream: Annotated[
        str | None, typer.Option("--stream", metavar="NAME", help="A pinned stream, by name or by file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there already.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from ner_cl.registry import heads

    heads[head]  # raises ConfigError for an unknown name
    file = None if stream is None else _stream_file(stream)
    if config.exists() and not force:
        raise ConfigError(f"{config}: exists already; use --force to replace it, or name another file")
    section = _OWN_STREAM if file is None else _PINNED_STREAM.format(file=file)
    name = file.stem if file else config.stem
    text = _TEMPLATE.format(path=config, head=head, stream=section, name=name)
    with replace_file(config) as output:
        output.write(text.encode())
    say(f"{config} is written; look at it, then: ner-cl train {config} --dry-run")


def _stream_file(name: str) -> Path:
    """Find the stream file of that name or path; ConfigError with the nearest name if there is none."""
    from ner_cl.registry import nearest

    if Path(name).is_file():
        return Path(name)
    checkout = Path(__file__).parents[2]
    for folder in (Path("configs/streams"), checkout / "configs" / "streams"):
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        if name in known:
            return folder / f"{name}.yaml"
        if known:
            raise ConfigError(
                f"--stream {name!r}: unknown{nearest(name, known)}; known: {', '.join(known)}, or give a file"
            )
    raise ConfigError(f"--stream {name!r}: no such file, and there is no folder configs/streams here; give a file")
