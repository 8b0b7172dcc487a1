"""Files that are there whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from ner_cl.files import new_folder, publish_folder, replace_file, replace_text, set_aside


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.txt"
    replace_text(path, "old")

    def fail() -> None:
        with replace_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert [found.name for found in path.parent.iterdir()] == ["x.txt"]


def test_a_link_goes_on_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "real" / "x.txt")
    for text in ("first", "second"):
        replace_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "real" / "x.txt").read_text() == text


def test_who_may_read_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    replace_text(path, "new")
    assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "new")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    replace_text(pipe, "through")
    reader.join(timeout=30)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_link_goes_on_pointing_at_its_folder(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("v1")
    publish_folder(link, lambda draft: (draft / "x.txt").write_text("new") and None)
    assert link.is_symlink()
    assert (tmp_path / "v1" / "x.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1", "v2"]


def test_what_a_killed_process_set_aside_is_found(tmp_path: Path) -> None:
    for name in (".model.replaced-12", ".model2.replaced-13"):
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path / "model") == tmp_path / ".model.replaced-12"
    assert set_aside(tmp_path / "mod*") is None


def test_what_a_killed_process_of_the_same_number_set_aside_is_not_lost(tmp_path: Path) -> None:
    """In a container every service has the number 1."""
    aside = tmp_path / f".model.replaced-{os.getpid()}"
    aside.mkdir()
    (aside / "weights").write_text("the only copy")

    def fail(draft: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        publish_folder(tmp_path / "model", fail)
    assert (tmp_path / "model" / "weights").read_text() == "the only copy"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_does_not_stumble_over_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / f".steps.{os.getpid()}.partial").mkdir()
    with new_folder(tmp_path / "steps") as draft:
        (draft / "x").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["steps", "x"]
