import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ner_cl.data.check import check
from ner_cl.errors import ConfigError

TRAIN = "Ada\tB-PER\nin\tO\nParis\tB-LOC\n\nBob\tB-PER\n\nBob\tB-PER\n\nBob\tO\n"
TEST = "Bob\tB-PER\n\nthe\tO\nLouvre\tB-ORG\n"


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "train.conll").write_text(TRAIN)
    (tmp_path / "test.conll").write_text(TEST)
    return {"train": tmp_path / "train.conll", "test": tmp_path / "test.conll"}


def test_a_sound_corpus(paths: dict[str, Path]) -> None:
    report = check(paths)
    assert report.ok
    train, test = report.splits["train"], report.splits["test"]
    assert (train.sentences, train.words, train.longest, train.longest_source) == (4, 6, 3, f"{paths['train']}:1")
    assert dict(train.mentions) == {"PER": 3, "LOC": 1}
    assert dict(train.annotated_types) == {"LOC": 4, "PER": 4}
    assert (train.duplicates, train.contradictions, train.leaked) == (2, 1, 0)
    assert (test.duplicates, test.contradictions, test.leaked) == (0, 0, 1)
    assert report.notes == (
        "train: 2 sentences repeat an earlier one: line 7, 9",
        "train: 1 repeated sentences are annotated differently: line 9 (as 5)",
        "test: 1 sentences stand in train too, scores on them are too high: line 1 (as 5)",
        "test: types that train never shows: ORG",
    )


def test_all_that_is_broken_is_listed(paths: dict[str, Path]) -> None:
    paths["train"].write_text("Ada\tB-PER\n\n" + "Bob\n\n" * 14 + "in\tX-LOC\n")
    report = check(paths, listed=3)
    assert not report.ok
    assert report.splits["train"].sentences == 1
    assert dict(report.splits["train"].problems) == {"broken": 15}
    assert [problem.split(":")[1] for problem in report.problems[:3]] == ["3", "5", "7"]
    assert report.problems[3] == f"{paths['train']}: 12 more like these (broken)"
    assert report.count == sum(sum(split.problems.values()) for split in report.splits.values()) >= 15
    assert len(report.problems) == 4
    assert report.splits["test"].sentences == 2


def test_misalignment_and_overlap_are_problems_unless_an_option_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    cut = {"text": "Londonderry", "spans": [[0, 6, "LOC"]]}
    nested = {"text": "University of London", "spans": [[0, 20, "ORG"], [14, 20, "LOC"]]}
    path.write_text(f"{json.dumps(cut)}\n{json.dumps(nested)}\n{{\n")
    report = check({"train": path})
    assert dict(report.splits["train"].problems) == {"broken": 1, "misaligned": 1, "overlap": 1}
    assert len(report.problems) == 3
    path.write_text(f"{json.dumps(cut)}\n{json.dumps(nested)}\n")
    report = check({"train": path}, alignment="expand", on_overlap="keep")
    assert report.ok
    assert report.notes == (
        "train: overlapping spans kept: 1 (line 2)",
        "train: span that cut a word expanded to whole words: 1 (line 1)",
    )


def test_contradictions_count_shared_types_only(tmp_path: Path) -> None:
    lines = [
        {"text": "Ada", "spans": [[0, 3, "PER"]], "annotated_types": ["PER"]},
        {"text": "Ada", "spans": [], "annotated_types": ["LOC"]},
        {"text": "Ada", "spans": [], "annotated_types": ["PER", "LOC"]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    split = check({"train": tmp_path / "x.jsonl"}).splits["train"]
    assert (split.duplicates, split.contradictions) == (2, 1)
    assert dict(split.annotated_types) == {"LOC": 2, "PER": 2}


def test_files_that_cannot_be_read_are_problems(paths: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.conll").touch()
    report = check({**paths, "dev": tmp_path / "none.conll", "extra": tmp_path / "empty.conll"})
    assert [problem.split(": ")[1] for problem in report.problems] == [
        "no such file; check the path",
        "is empty; name a file with sentences",
    ]
    assert report.splits["dev"].sentences == 0


def test_runaway_sentences_are_noted(tmp_path: Path) -> None:
    (tmp_path / "x.conll").write_text("a\tO\n\n" + "b\tO\n" * 401)
    notes = check({"train": tmp_path / "x.conll"}).notes
    assert notes == ("train: the longest sentence has 401 words (line 3); is a separator missing?",)


def test_json_form(paths: dict[str, Path]) -> None:
    paths["test"].write_text("# id 1\n" * 30 + TEST)
    values = json.loads(json.dumps(check(paths).to_json()))
    assert values["ok"] is True
    assert values["splits"]["test"]["leaked"] == 1
    assert values["splits"]["test"]["repairs"]["comment line skipped"] == {
        "count": 30,
        "first_lines": list(range(1, 21)),
    }
    assert set(values) == {"ok", "problems", "notes", "splits"}


def test_wrong_use_is_said(paths: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no file to check"):
        check({})
    with pytest.raises(ConfigError, match="unknown format"):
        check(paths, format="cnll")


ROW = re.compile(r"^\| (train|dev|test) \| (\d+) \| (\d+) \| (\d+) \| \d+ \| (\d+) \| (\S+) \| (\d+) \|$", re.MULTILINE)
LEAKED = re.compile(r"^\| (\w+) \| \d+/\d+/\d+ \|.*\| (?:yes|no) \| (\d+) \|", re.MULTILINE)
SCRIPT = """
import json, sys
from ner_cl.data.check import check
for folder in sys.argv[1:]:
    print(json.dumps(check({s: f"{folder}/{s}.conll" for s in ("train", "dev", "test")}).to_json()))
"""


@pytest.mark.slow
def test_published_corpora_give_the_published_counts(shared_data: Path) -> None:
    leaked_in = LEAKED.findall((shared_data / "README.md").read_text(encoding="utf-8"))
    assert len(leaked_in) == 19
    # In a process of its own: the run-time type checks of this one would make every line of 60 MB ten times as slow.
    folders = [str(shared_data / corpus) for corpus, _ in leaked_in]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *folders], capture_output=True, text=True, check=True)
    for (corpus, leaked_in_test), line in zip(leaked_in, done.stdout.splitlines(), strict=True):
        report = json.loads(line)
        assert report["ok"]
        assert report["splits"]["test"]["leaked"] == int(leaked_in_test)
        rows = ROW.findall((shared_data / corpus / "README.md").read_text(encoding="utf-8"))
        assert len(rows) == 3
        for name, *published in rows:
            split = report["splits"][name]
            counts = (split[key] for key in ("sentences", "words", "duplicates", "leaked", "longest"))
            sentences, words, duplicates, leaked, longest = counts
            mentions = sum(split["mentions"].values())
            found = [sentences, words, mentions, duplicates, leaked, longest]
            assert found == [int(number.replace("-", "0")) for number in published], f"{corpus} {name}"
