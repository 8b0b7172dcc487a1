"""The command as a whole: verbs, exit codes, how errors are told."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ner_cl
import ner_cl.config
from ner_cl.cli.app import main
from ner_cl.errors import CheckFailed, DataError
from tests.cli.conftest import Toy

VERBS = ("init", "train", "learn", "evaluate", "predict", "serve", "info", "data")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "data check", "data convert", "data split"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    assert f"Usage: ner-cl {verb} " in capsys.readouterr().out


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_the_command_itself_imports_nothing_heavy_for_its_help() -> None:
    # The package's own __init__ is left out, so that only what the command line imports is looked at.
    folder = Path(ner_cl.__file__).parent
    code = (
        "import sys, types\n"
        "package = types.ModuleType('ner_cl')\n"
        f"package.__path__ = [{str(folder)!r}]\n"
        "sys.modules['ner_cl'] = package\n"
        "from ner_cl.cli.app import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'spacy', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "train"),
        (["train"], "CONFIG"),
        (["train", "x.yaml", "--outptu", "y"], "--outptu"),
        (["learn", "x.jsonl"], "--types"),
        (["learn", "x.jsonl", "--types", "A", "--max-drop", "5"], "--max-drop"),
        (["learn", "x.jsonl", "--types", "A", "--seed", "many"], "--seed"),
        (["data"], "ommand"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("ner-cl: error: ")
    assert line.endswith("--help")
    assert said in line


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckFailed("it fell"), 1, "it fell"),
        (DataError("a.jsonl:3: is\nbroken"), 2, "a.jsonl:3: is broken"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "runs/x"), 2, "runs/x: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory; give smaller batches"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory;"),
        (ValueError("odd"), 2, "unexpected ValueError: odd"),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(ner_cl.config, "load_config", fail)
    assert main(["train", "x.yaml"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("ner-cl: error: ")
    assert said in line


@pytest.mark.parametrize("words", [["--debug", "train", "no.yaml"], ["train", "no.yaml", "--debug"]])
def test_debug_shows_the_trace_before_and_after_the_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("ner-cl: error: no.yaml: no such file")


def test_behind_two_dashes_a_word_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "no-model", "--", "-q"]) == 2
    assert "no-model: no such model folder" in capsys.readouterr().err


def test_of_several_processes_only_the_first_talks(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", str(toy.config), "--dry-run"]) == 0
    assert main(["train", "no.yaml"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


class _Full(io.StringIO):
    """A stream on a device without space."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_the_exit_code_does_not_depend_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, _Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["evaluate", "no-model", "x.jsonl"]) == 2
        sys.stderr.close()


def test_a_closed_stdout_is_no_error(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["data", "check", str(toy.data / "train.jsonl")]) == 0
    sys.stdout.close()


def test_a_closed_stdin_is_named(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["predict", str(model_folder)]) == 2
    assert capsys.readouterr().err == "ner-cl: error: stdin is closed; name a file of text or JSON lines\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_stdout_is_named(toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["data", "check", str(toy.data / "train.jsonl")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("ner-cl: error: stdout: No space left on device")


@pytest.mark.slow
def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ner_cl", "evaluate", "no-model", "x.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ner-cl: error: no-model: no such model folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("Ada met Bob in Rome .\n" * 900)  # more than a pipe holds
    command = [sys.executable, "-m", "ner_cl", "predict", str(model_folder), str(tmp_path / "many.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "Ada" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 0
