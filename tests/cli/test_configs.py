"""Every configuration that ships with the project can be run."""

import json
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from tests.cli.conftest import Toy

CONFIGS = Path(__file__).parents[2] / "configs"


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What a dry run says; skips where the corpus is not at hand."""
    code = main(["train", *words, "--dry-run", "--json"])
    captured = capsys.readouterr()
    if code and "no such file; set NER_CL_DATA" in captured.err:
        pytest.skip(captured.err.strip())
    assert code == 0, captured.err
    description: dict[str, object] = json.loads(captured.out)
    return description


@pytest.fixture
def corpora(monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path) -> None:
    """Looks corpora up where they are, and works where nothing may be written to."""
    monkeypatch.setenv("NER_CL_DATA", str(repository.parent / "shared" / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("corpora")
@pytest.mark.parametrize("name", ["quickstart.yaml", *(f"examples/{p.name}" for p in CONFIGS.glob("examples/*.yaml"))])
def test_a_configuration_dry_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = dry_run(capsys, str(CONFIGS / name))
    assert description["steps"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("corpora")
@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("streams/*.yaml")))
def test_a_pinned_stream_dry_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stream = CONFIGS / "streams" / name
    described = dry_run(capsys, str(CONFIGS / "presets" / "extendner.yaml"), "--set", f"stream.file={stream}")
    assert len(described["steps"]) > 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("presets/*.yaml")), ids=lambda path: path.stem)
def test_a_preset_dry_runs_on_any_stream(
    path: Path, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = tmp_path / "stream.yaml"
    corpus = {part: str(toy.data / f"{part}.jsonl") for part in ("train", "dev", "test")}
    stream.write_text(json.dumps({"name": "toy", "corpus": corpus, "steps": [["PER"], ["LOC"]]}))
    description = dry_run(capsys, str(path), "--set", f"stream.file={stream}")
    expected = "distill" if path.stem in ("addner", "extendner", "spankl") else path.stem
    assert description["strategies"] == [expected]


def test_the_quickstart_leaves_one_type_for_later(capsys: pytest.CaptureFixture[str]) -> None:
    description = dry_run(capsys, str(CONFIGS / "quickstart.yaml"))
    types = [step["types"] for step in description["steps"]]  # type: ignore[attr-defined]
    assert types == [["PERSON"], ["LOCATION"], ["ORGANIZATION"], ["DATE"], ["MONEY"], ["PRODUCT"]]
