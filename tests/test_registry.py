"""Look-ups of parts: by many threads at once, and of packages that cannot be imported."""

import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from ner_cl import registry
from ner_cl.errors import ConfigError
from ner_cl.registry import Registry

SLOW = """
import time
from tests.test_registry import PARTS
time.sleep(0.2)

@PARTS.register("late")
class Late: ...
"""
PARTS: Registry[type] = Registry("part", modules=("slow_parts_of_a_test",), group="ner_cl.tests")


def test_threads_that_ask_first_all_find_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_parts_of_a_test.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(PARTS["late"].__name__)
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == ["Late"] * 4


def test_a_package_that_cannot_be_imported_is_named_at_every_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are other parts lost: the next look-up finds them all, once the package is mended."""
    (tmp_path / "broken_part_of_a_test.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("broken", "broken_part_of_a_test:Part", "ner_cl.tests")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    parts: Registry[type] = Registry("part", modules=(), group="ner_cl.tests")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"'broken' of broken_part_of_a_test:Part cannot be imported .*no_such"):
            _ = parts["anything"]
    (tmp_path / "broken_part_of_a_test.py").write_text("class Part: ...\n")
    sys.modules.pop("broken_part_of_a_test", None)
    with pytest.raises(ConfigError, match="unknown part 'anything'"):
        _ = parts["anything"]


def test_a_name_that_is_taken_is_refused_and_the_same_part_is_not() -> None:
    parts: Registry[type] = Registry("part", modules=(), group="ner_cl.tests")
    parts.register("one")(Path)
    parts.register("one")(Path)
    with pytest.raises(ConfigError, match="part 'one' is registered twice"):
        parts.register("one")(EntryPoint)
