"""`ner-cl learn`."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ner_cl.cli.app import main
from ner_cl.cli.options import beside
from ner_cl.config import DEFAULT_STRATEGIES
from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.files import sole_writer
from ner_cl.model.store import load_model
from ner_cl.types import Sentence, Span
from tests.cli.conftest import Toy
from tests.tiny import toy_sentences

QUICK = ["--set", "training.batch_tokens=64", "--set", "training.epochs=2", "--set", "training.optimizer.lr=3e-3"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_learns_a_type_and_stays_what_it_was(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tagger"
    shutil.copytree(model_folder, model)
    before = files(model)
    dev = str(toy.data / "test.jsonl")
    assert main(["learn", str(toy.orgs), "--model", str(model), "--types", "ORG", "--dev", dev, *QUICK]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["type", "before", "after", "change", "measured"]
    assert [line.split()[0] for line in lines[1:]] == ["PER", "LOC", "ORG"]
    assert re.search(r"gold, \d\d mentions$", lines[1])
    assert "step 3 (ORG): 60 sentences" in captured.err
    assert files(model) == before
    grown = load_model(tmp_path / "tagger-step3")
    assert grown.types == ("PER", "LOC", "ORG")
    assert grown.history[-1]["types"] == ["ORG"]


def test_json_says_what_the_table_says(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / "new", tmp_path / "data.jsonl"
    mentions_of_all = toy_sentences(60, seed=9, types=("PER", "LOC", "ORG"))
    write_sentences(data, [sentence.restrict(["ORG"]) for sentence in mentions_of_all])
    words = ["learn", str(data), "--model", str(model_folder), "--types", "ORG", "--output", str(output), *QUICK]
    assert main(["-q", *words, "--json", "--strategies", "[{name: distill, temperature: 3}]"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert (result["model"], result["step"]) == (str(output), 3)
    assert [(row["type"], row["measured"]) for row in result["types"]] == [
        ("PER", "agreement"),
        ("LOC", "agreement"),
        ("ORG", "gold"),
    ]
    found = load_model(model_folder).predict([s.words for s in mentions_of_all])  # the step holds some of these back
    assert 0 < result["types"][0]["mentions"] <= sum(span.type == "PER" for spans in found for span in spans)
    (record,) = load_model(output).history[2:]
    assert record["strategies"][0]["temperature"] == 3.0


def test_the_gate_keeps_a_forgetful_model_from_being_saved(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", "--strategies", "finetune"]
    dev = ["--dev", str(toy.data / "test.jsonl"), "--output", str(tmp_path / "new"), "--max-drop", "0.2"]
    assert main([*words, *dev, *QUICK, "--set", "training.epochs=5"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("type")
    assert "the model is not published" in captured.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["extendner", "addner", "spankl"])
def test_a_new_model_starts_on_an_encoder(
    head: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learn", str(toy.orgs), "--encoder", str(toy.encoder), "--head", head, "--types", "ORG", *QUICK]
    assert main(words) == 2
    assert "--output" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "deep" / "new")]) == 0
    model = load_model(tmp_path / "deep" / "new")
    assert (model.types, model.head.options.name) == (("ORG",), head)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model"),
        (["--encoder", "x", "--head", "addnr", "--output", "y"], "did you mean 'addner'"),
        (["--model", "MODEL", "--head", "addner"], "leave --encoder and --head out"),
        (["--model", "MODEL", "--set", "seed=3"], "training"),
        (["--model", "MODEL", "--set", "training.epochs"], "training.key=value"),
        (["--model", "MODEL", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["--model", "MODEL", "--set", "training.epochs=0"], "epochs"),
        (["--model", "MODEL", "--set", "training.epochs=[3"], "not valid YAML"),
        (["--model", "MODEL", "--set", "training.optimizer=3", "--set", "training.optimizer.lr=3"], "optimizer"),
        (["--model", "RUN"], "is a run; its models are"),
        (["--model", "MODEL", "--strategies", "[{replay: 0.05}]"], "for instance {name: replay}"),
        (["--model", "MODEL", "--strategies", "destill"], "did you mean 'distill'"),
        (["--model", "MODEL", "--strategies", "joint"], "earlier steps"),
        (["--model", "MODEL", "--strategies", ""], "name one or more"),
        (["--model", "MODEL", "--strategies", "[finetune, distill]"], "both say how old types are held"),
        (["--model", "MODEL", "--output", "DATA"], "exists and is not empty"),
        (["--model", "MODEL", "--output", "MODEL"], "holds a model already"),
        (["--model", "MODEL", "--output", "/dev/null/x"], "nothing can be written"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    words: list[str], said: str, toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"MODEL": str(model_folder), "DATA": str(toy.data), "RUN": str(model_folder.parents[1])}
    before = files(model_folder.parent)
    assert main(["-q", "learn", str(toy.orgs), "--types", "ORG", *(names.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line
    assert files(model_folder.parent) == before


# --- replay


@pytest.fixture
def old(toy: Toy, tmp_path: Path) -> Path:
    """A few sentences annotated for the old types."""
    path = tmp_path / "old.jsonl"
    write_sentences(path, read_sentences(toy.data / "train.jsonl")[:8])
    return path


def learn_with_replay(toy: Toy, model: Path, output: Path, old: Path, *more: str) -> int:
    words = ["learn", str(toy.orgs), "--model", str(model), "--types", "ORG", "--output", str(output)]
    return main([*words, "--replay", str(old), *QUICK, *more])


def test_a_second_model_is_not_written_over_one_in_the_making(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, link = tmp_path / "models" / "orgs", tmp_path / "link"
    link.symlink_to(folder)
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", *QUICK, "--output"]
    with sole_writer(folder, "--output"):
        for name in (folder, link):
            assert main([*words, str(name)]) == 2
            told = f"ner-cl: error: --output: another run is writing to {folder}; choose another folder\n"
            assert capsys.readouterr().err == told
    assert main([*words, str(folder), "--types", "MISC"]) == 2
    assert not folder.parent.exists()  # nothing is left of what did not come to anything
    (folder.parent / ".orgs.draft-1").mkdir(parents=True)  # left by a process that was killed
    assert main([*words, str(folder)]) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["orgs"]
    before = files(folder)
    assert main([*words, str(tmp_path / "new" / ".." / "models" / "orgs")]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert files(folder) == before
    assert not (tmp_path / "new").exists()


def test_a_link_that_leads_nowhere_is_refused_before_training(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", *QUICK, "--output", str(loop)]
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == f"ner-cl: error: --output {loop}: is a link that leads nowhere; choose another folder\n"
    )


def test_old_sentences_are_replayed_kept_and_can_be_deleted(
    toy: Toy, model_folder: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    assert learn_with_replay(toy, model_folder, output, old) == 0
    captured = capsys.readouterr()
    assert "step 3 (ORG): 58 sentences" in captured.err  # 10 of 60 are held back
    kept = load_model(output).kept_sentences["replay"]
    assert [sentence.words for sentence in kept[:8]] == [sentence.words for sentence in read_sentences(old)]
    assert captured.err.splitlines()[-1] == (
        f"note: it keeps {len(kept)} sentences to learn more with; ner-cl data forget {output} deletes them"
    )
    used = {item["name"] for item in load_model(output).history[-1]["strategies"]}
    assert used == {*DEFAULT_STRATEGIES, "replay"}
    assert main(["data", "forget", str(output)]) == 0
    assert capsys.readouterr().err.splitlines() == [f"{len(kept)} sentences deleted from {output}"]
    assert load_model(output).kept_sentences == {}


def test_replay_in_the_list_keeps_its_options_and_its_memory_is_replaced(
    toy: Toy, model_folder: Path, old: Path, tmp_path: Path
) -> None:
    options = "[{name: replay, budget: 4, unit: total}]"
    first, second = tmp_path / "first", tmp_path / "second"
    assert learn_with_replay(toy, model_folder, first, old, "--strategies", options) == 0
    assert len(load_model(first).kept_sentences["replay"]) == 4
    write_sentences(tmp_path / "org.jsonl", read_sentences(toy.orgs)[:2])
    write_sentences(tmp_path / "misc.jsonl", toy_sentences(30, seed=5, types=("MISC",)))
    words = ["learn", str(tmp_path / "misc.jsonl"), "--model", str(first), "--types", "MISC", "--output", str(second)]
    assert main([*words, "--replay", str(tmp_path / "org.jsonl"), *QUICK]) == 0
    kept = load_model(second).kept_sentences["replay"]
    assert {type_ for sentence in kept for type_ in sentence.annotated_types} == {"ORG", "MISC"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "old.jsonl: is empty"),
        (
            '{"text": "Ada", "spans": [], "annotated_types": []}',
            "old.jsonl:1: a sentence to replay is annotated for no",
        ),
        (
            '{"text": "Ada", "spans": [], "annotated_types": ["PRE"]}',
            "which the model does not know, did you mean 'PER'",
        ),
        ('{"text": "Acme", "spans": [{"start": 0, "end": 4, "label": "ORG"}]}', "ORG, which is only being learned"),
        ('{"text": "Ada"', "old.jsonl:1"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    line: str, said: str, toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(f"{line}\n" if line else "")
    assert learn_with_replay(toy, model_folder, tmp_path / "new", path, "-q") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message
    assert not (tmp_path / "new").exists()


def test_sentences_of_several_types_must_say_for_which_they_are_annotated(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "old.jsonl", tmp_path / "new"
    ada = '{"text": "Ada", "spans": [{"start": 0, "end": 3, "label": "PER"}]'
    rome = '{"text": "Rome", "spans": [{"start": 0, "end": 4, "label": "LOC"}]'
    said = f'{ada}, "annotated_types": ["PER"]}}'
    for lines, line in (([f"{ada}}}", f"{rome}}}"], 1), ([said, f"{rome}}}"], 2)):
        path.write_text("\n".join(lines))
        assert learn_with_replay(toy, model_folder, output, path, "-q") == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert f"old.jsonl:{line}: does not say for which of LOC, PER it is annotated; if for all, `ner-cl" in message
        assert not output.exists()
    (tmp_path / "old.conll").write_text("Ada B-PER\n\nRome B-LOC\n")
    assert learn_with_replay(toy, model_folder, output, tmp_path / "old.conll", "-q") == 2
    assert "old.conll:1: does not say for which of LOC, PER" in capsys.readouterr().err
    assert not output.exists()
    path.write_text(f"{ada}}}\n{ada}}}")
    assert learn_with_replay(toy, model_folder, output, path, "-q") == 0
    (kept, *_) = load_model(output).kept_sentences["replay"]
    assert kept.annotated_types == {"PER"}


def test_a_memory_that_would_not_be_replayed_is_refused(
    toy: Toy, model_folder: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "[{name: replay, mixing: loss, weight: 0}]"
    assert learn_with_replay(toy, model_folder, tmp_path / "new", old, "-q", "--strategies", options) == 2
    assert "strategies: replay has a weight of 0" in capsys.readouterr().err


def test_a_missing_memory_and_an_upper_bound_beside_it_are_refused(
    toy: Toy, model_folder: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn_with_replay(toy, model_folder, tmp_path / "new", tmp_path / "none.jsonl", "-q") == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert learn_with_replay(toy, model_folder, tmp_path / "new", old, "-q", "--strategies", "joint") == 2
    assert "cannot be combined" in capsys.readouterr().err


def test_raw_text_is_read_as_the_strategies_ask(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(" ".join(s.words) + "\n\n" for s in toy_sentences(40, seed=9)), encoding="utf-8")
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", *QUICK]
    weights = []
    for number, strategies in enumerate(
        ("distill", "{name: distill, unlabeled: 0}", "[{name: das, pretrain_epochs: 1}]")
    ):
        for unlabeled in ([], ["--unlabeled", str(raw)]):
            output = tmp_path / f"{number}{len(unlabeled)}"
            code = main([*words, "--output", str(output), "--strategies", strategies, *unlabeled])
            if strategies.endswith("0}") and unlabeled:
                assert code == 2  # nobody reads it
                weights.append(weights[-1])
            else:
                assert code == 0
                weights.append(load_model(output).state_dict())
    same = [
        all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(weights[::2], weights[1::2], strict=True)
    ]
    assert same == [False, True, False]
    assert all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    more = ["--output", str(tmp_path / "none"), "--unlabeled", str(raw), "-q"]
    capsys.readouterr()
    assert main([*words, *more, "--strategies", "self_training"]) == 2
    assert "strategies: none of them reads unlabeled text; distill does" in capsys.readouterr().err
    raw.write_text(" \n\n", encoding="utf-8")
    capsys.readouterr()
    assert main([*words, *more]) == 2
    assert "raw.txt: holds no text; give one text a line" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("strategies", "advised"),
    [("distill", True), ("cpfd", False), ("{name: distill, unlabeled: 0}", False), ("finetune", False)],
)
def test_raw_text_is_advised_where_types_fell_and_the_strategies_read_it(
    strategies: str, advised: bool, toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", "--output", str(tmp_path / "new")]
    wild = ["--strategies", strategies, "--set", "training.optimizer.lr=0.1", "--dev", str(toy.data / "test.jsonl")]
    assert main([*words, *QUICK, *wild]) == 0
    said = capsys.readouterr().err
    assert "note: PER fell by" in said
    assert "use --max-drop to reject such a model" in said
    assert ("given with --unlabeled" in said) is advised


def test_what_was_given_is_not_advised(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", "--output", str(tmp_path / "new")]
    wild = ["--set", "training.optimizer.lr=0.1", "--dev", str(toy.data / "test.jsonl"), "--max-drop", "1"]
    assert main([*words, *QUICK, *wild]) == 0
    said = capsys.readouterr().err
    assert "note: PER fell by" in said
    assert "--max-drop" not in said


@pytest.mark.parametrize(("strategies", "noted"), [("distill", True), ("[{name: das, pretrain_epochs: 1}]", False)])
def test_raw_text_without_an_old_type_is_said_to_be_of_no_use(
    strategies: str, noted: bool, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("Ada saw Rome.\n", encoding="utf-8")
    words = ["learn", str(toy.orgs), "--encoder", str(toy.encoder), "--types", "ORG", "--unlabeled", str(raw), *QUICK]
    assert main([*words, "--strategies", strategies, "--output", str(tmp_path / "new")]) == 0
    note = "note: raw text preserves old types, and there are none yet: it is not read"
    assert (note in capsys.readouterr().err) is noted


def test_isolation_is_checked_told_and_written_down(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["learn", str(toy.data / "train.jsonl"), "--encoder", str(toy.encoder), "--types", "PER", *QUICK]
    assert main([*base, "--isolate", "--output", str(tmp_path / "1")]) == 0
    assert load_model(tmp_path / "1").head.name == "addner"
    more = ["learn", str(toy.orgs), "--model", str(tmp_path / "1"), "--types", "ORG", *QUICK, "--isolate"]
    capsys.readouterr()
    assert main([*more, "--output", str(tmp_path / "2"), "--json"]) == 0
    captured = capsys.readouterr()
    assert "the blocks of earlier steps emit what they did, to the last bit, on " in captured.err
    result = json.loads(captured.out)
    assert result["isolation"]["unchanged"] == [1]
    assert load_model(tmp_path / "2").history[-1]["isolation"] == result["isolation"]


def test_a_forgotten_model_is_not_replaced_by_a_new_one(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", str(toy.orgs), "--types", "ORG", "--isolate", "--output", str(tmp_path / "new")]) == 2
    assert "name the model that learns more with --model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_new_model_gets_the_head_that_its_strategies_need(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learn", str(toy.orgs), "--encoder", str(toy.encoder), "--types", "ORG", *QUICK]
    assert main([*words, "--strategies", "packnet", "--output", str(tmp_path / "new")]) == 0
    assert load_model(tmp_path / "new").head.name == "addner"


def test_a_model_is_saved_though_nobody_reads_the_table(toy: Toy, model_folder: Path, tmp_path: Path) -> None:
    """And one that is rejected is not, and says so by its exit code."""
    for number, (gate, code) in enumerate(((["--max-drop", "1"], 0), (["--max-drop", "0"], 1))):
        output = tmp_path / str(number)
        words = ["learn", str(toy.orgs), "--model", str(model_folder), "--types", "ORG", "--output", str(output)]
        quick = ["--set", "training.epochs=2", "--set", "training.optimizer.lr=0.5", "--quiet", *gate]
        command = [sys.executable, "-m", "ner_cl", *words, *quick]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(timeout=120) == code
        assert output.exists() == (code == 0)


def test_an_isolated_model_is_made_compact(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["-q", "learn", str(toy.data / "train.jsonl"), "--encoder", str(toy.encoder), *QUICK]
    assert main([*base, "--types", "PER", "--isolate", "--output", str(tmp_path / "1")]) == 0
    more = ["-q", "learn", str(toy.orgs), "--model", str(tmp_path / "1"), "--types", "ORG", *QUICK, "--isolate"]
    assert main([*more, "--output", str(tmp_path / "2")]) == 0
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(" ".join(s.words) + "\n" for s in toy_sentences(60, seed=8)), encoding="utf-8")
    capsys.readouterr()
    words = ["compact", str(tmp_path / "2"), str(raw), "--dev", str(toy.orgs), *QUICK]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["type", "PER", "ORG"]
    assert re.search(r"gold, \d+ mentions$", lines[2])
    assert load_model(tmp_path / "2-compact").subnetworks is None
    assert main(words) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main(["compact", str(tmp_path / "2-compact"), str(raw), "--output", str(tmp_path / "3")]) == 2
    assert "one encoder for all its steps already" in capsys.readouterr().err


def test_mentions_inside_of_mentions_are_learned_and_scored(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(number: int, city: str) -> Sentence:
        both = frozenset({"ORG", "LOC"})
        if number % 2:
            return Sentence(("we", "saw", city, "today"), (Span(2, 3, "LOC"),), both)
        return Sentence(("the", "Bank", "of", city, "rose"), (Span(1, 4, "ORG"), Span(3, 4, "LOC")), both)

    cities = ("Oslo", "Rome", "Paris", "Lima")
    data = tmp_path / "nested.jsonl"
    write_sentences(data, [sentence(number, cities[number % 3 + number % 2]) for number in range(80)])
    words = ["learn", str(data), "--encoder", str(toy.encoder), "--types", "ORG,LOC", *QUICK, "--json"]
    for head, code in (("spankl", 0), ("addner", 2)):
        output = tmp_path / head
        flags = ["--head", head, "--on-overlap", "keep", "--output", str(output)]
        assert main(["-q", *words, *flags, "--set", "training.epochs=15"]) == code
        assert ("a word has one tag" in capsys.readouterr().err) == bool(code)
    model = load_model(tmp_path / "spankl")
    text = "the Bank of Rome rose"
    assert [(e.text, e.type) for e in model.predict(text, nested=True)] == [("Bank of Rome", "ORG"), ("Rome", "LOC")]
    assert main(["evaluate", str(tmp_path / "spankl"), str(data), "--on-overlap", "keep", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["seqeval"] == {}
    assert report["types"]["LOC"]["support"] == 80
    assert main(["evaluate", str(tmp_path / "spankl"), str(data)]) == 2
    assert "spans overlap" in capsys.readouterr().err


def test_a_model_of_the_hub_grows_into_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not into a folder named like its owner, which would hide the hub's models of that owner."""
    monkeypatch.chdir(tmp_path)
    assert beside(Path("you/drug-tagger"), "-step3") == tmp_path / "drug-tagger-step3"
    (tmp_path / "models" / "two").mkdir(parents=True)
    assert beside(Path("models/two"), "-step3") == tmp_path / "models" / "two-step3"


@pytest.mark.parametrize(
    ("strategies", "noted"),
    [("replay", True), ("replay,frozen_trunk", False), ("distill,replay", False), ("hat", False)],
)
def test_a_list_that_leaves_out_a_part_of_the_default_is_told(
    strategies: str, noted: bool, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "addner" if strategies == "hat" else "extendner"
    words = ["learn", str(toy.orgs), "--encoder", str(toy.encoder), "--head", head, "--types", "ORG", *QUICK]
    assert main([*words, "--strategies", strategies, "--output", str(tmp_path / "new")]) == 0
    assert ("note: frozen_trunk is part of the default and not of --strategies" in capsys.readouterr().err) == noted
