"""`ner-cl init`."""

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from ner_cl.cli.app import main
from ner_cl.config import Config, HeadOptions, load_config
from ner_cl.config.composition import default_strategies
from tests.cli.conftest import Toy


@pytest.mark.parametrize("head", ["extendner", "addner", "spankl"])
def test_the_file_says_the_defaults(head: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", str(path), "--head", head]) == 0
    config = load_config(path, environment={})
    bare = Config.model_validate({"stream": config.stream, "head": {"name": head}, "output": "runs/mine"})
    assert config == bare
    assert [options.name for options in config.strategies] == default_strategies(HeadOptions(name=head))


def test_the_file_can_be_trained_from(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toy.data.parent / "started.yaml"
    assert main(["init", str(path)]) == 0
    assert main(["train", str(path), "--dry-run", "--set", "stream.steps=[[PER], [LOC]]"]) == 0
    assert "step  types" in capsys.readouterr().out


def test_a_pinned_stream_is_taken_by_name_or_by_file(
    toy: Toy, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "a.yaml", "--stream", "wnut17"]) == 0
    file = repository / "configs" / "streams" / "wnut17.yaml"
    assert Path(yaml.safe_load(Path("a.yaml").read_text())["stream"]["file"]).samefile(file)
    assert main(["init", "b.yaml", "--stream", str(file)]) == 0
    assert load_config("b.yaml").stream == load_config("a.yaml").stream
    (Path("configs") / "streams").mkdir(parents=True)
    (Path("configs") / "streams" / "mine.yaml").write_text("name: mine")
    for name in ("mine", "wnut17"):  # one's own streams hide none of the others
        assert main(["init", f"{name}.yaml", "--stream", name]) == 0
    assert main(["init", "c.yaml", "--stream", "wnut71"]) == 2
    assert "did you mean 'wnut17'" in capsys.readouterr().err
    assert not Path("c.yaml").exists()


def test_a_file_is_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    assert main(["init", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main(["init", str(path), "--force"]) == 0
    assert path.read_text() != "mine"


@pytest.mark.parametrize("name", ["a: b", "my run #1", "yes", "1", "it's", 'a "b"', "ü"])
def test_any_name_is_kept(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"{name}.yaml"
    assert main(["init", str(path)]) == 0
    assert load_config(path, environment={}).output == f"runs/{name}"
    assert f"ner-cl train {shlex.quote(str(path))} --dry-run" in capsys.readouterr().err


def test_the_name_of_a_stream_is_kept(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copy(repository / "configs" / "streams" / "gum.yaml", tmp_path / "a: b #1.yaml")
    path = tmp_path / "mine.yaml"
    assert main(["init", str(path), "--stream", str(copy)]) == 0
    values = yaml.safe_load(path.read_text())
    assert (values["stream"]["file"], values["output"]) == (str(copy), "runs/a: b #1")


def test_an_unknown_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "x.yaml"), "--head", "extendnr"]) == 2
    assert "did you mean 'extendner'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
