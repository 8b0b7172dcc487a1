"""The twelve kinds of bad input: one clear line, exit code 2, nothing written."""

from pathlib import Path

import pytest

from ner_cl.cli.app import main
from tests.cli.conftest import Toy

# kind → (name and content of the file of sentences, what the error line says)
BAD_FILES = {
    "missing file": ("absent.conll", None, "no such file"),
    "empty file": ("x.conll", b"", "is empty"),
    "one column": ("x.conll", b"Ada\tB-PER\nmet\n", "x.conll:2: "),
    "unknown prefix": ("x.conll", b"Ada\tB-PER\nRome\tX-LOC\nmet\tO\n", "x.conll:2: "),
    "mixed schemes": ("x.conll", b"Ada\tPER\nRome\tLOC\nBob\tPER\nEve\tB-PER\n", "x.conll:4: "),
    "overlapping spans": (
        "x.jsonl",
        b'{"text": "A B", "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 2, "end": 3, "label": "LOC"}]}',
        "overlap",
    ),
    "offsets outside the text": (
        "x.jsonl",
        b'{"text": "Ada", "spans": [{"start": 0, "end": 9, "label": "PER"}]}',
        "x.jsonl:1: ",
    ),
    "wrong encoding": ("x.conll", "Ada\tB-PER\nGöttingen\tB-LOC\n".encode("latin-1"), "is not UTF-8"),
}


def assert_refused(capsys: pytest.CaptureFixture[str], words: list[str], output: Path, said: str) -> None:
    """Runs the words and asserts that they are refused as they must be."""
    before = sorted(output.parent.rglob("*"))
    assert main(["-q", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("ner-cl: error: ")
    assert said in line
    assert not output.exists()
    assert sorted(output.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("verb", ["train", "learn"])
def test_a_bad_file_is_refused(
    verb: str, kind: str, toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, said = BAD_FILES[kind]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "output"
    words = {
        "train": ["train", str(toy.config), "--set", f"stream.corpus.train={tmp_path / name}"],
        "learn": ["learn", str(tmp_path / name), "--model", str(model_folder), "--types", "ORG"],
    }
    assert_refused(capsys, [*words[verb], "--output", str(output)], output, said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "stream.steps=[[PER], [LCO]]"], "did you mean 'LOC'"),
        (["--set", "stream.steps=[[PER], [LOC, PER]]"], "already in step 1"),
        (["--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["--set", "encoder.name=no/such/encoder"], "encoder.name: cannot load 'no/such/encoder'"),
    ],
)
def test_a_bad_configuration_is_refused(
    words: list[str], said: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert_refused(capsys, ["train", str(toy.config), "--output", str(output), *words], output, said)


def test_a_key_misspelt_in_the_file_is_refused(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy.write_config(tmp_path / "config.yaml", sede=13)
    output = tmp_path / "run"
    assert_refused(
        capsys,
        ["train", str(config), "--output", str(output)],
        output,
        f"{config}: unknown key 'sede', did you mean 'seed'",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "MODEL", "--types", "OGR"], "did you mean 'ORG'"),
        (["--model", "MODEL", "--types", "PER"], "type PER was already learned in step 1"),
        (["--model", "MODEL", "--types", "ORG,ORG"], "named twice"),
        (["--model", "no-model", "--types", "ORG"], "no such model folder"),
        (["--encoder", "no/such/encoder", "--types", "ORG"], "cannot load 'no/such/encoder'"),
    ],
)
def test_a_bad_step_is_refused(
    words: list[str], said: str, toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    words = [str(model_folder) if word == "MODEL" else word for word in words]
    assert_refused(capsys, ["learn", str(toy.orgs), "--output", str(output), *words], output, said)
