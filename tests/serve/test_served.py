"""A model in service, beside the model itself."""

from pathlib import Path

import pytest

from ner_cl.errors import ModelError
from ner_cl_serve.served import ServedModel, digest_of, load_served
from ner_cl_serve.settings import Batching, Settings
from tests.serve.conftest import TEXT

LONG = f"{TEXT} " * 60


@pytest.fixture(scope="module")
def served(model_root: Path) -> ServedModel:
    return load_served(model_root / "step2", Settings(model_root=model_root, batching=Batching(batch_tokens=256)))


def test_between_is_called_before_every_pass(served: ServedModel) -> None:
    calls: list[int] = []
    found = served.find([LONG], between=lambda: calls.append(1))
    assert len(calls) > 5
    assert [(e.start, e.end, e.type) for e in found[0]] == [
        (e.start, e.end, e.type) for e in served.model.predict(LONG)
    ]


def test_texts_may_be_computed_between_two_passes(served: ServedModel) -> None:
    """Which needs a predict path that may be entered again while it runs."""
    alone = [served.find([LONG]), served.find([TEXT, "Oslo"], types=["LOC"])]
    inside: list[object] = []

    def between() -> None:
        if not inside:  # the inner one passes through the same model
            inside.append(None)
            inside[0] = served.find([TEXT, "Oslo"], types=["LOC"])

    found = served.find([LONG], between=between)
    assert [[(e.start, e.end, e.type) for e in entities] for entities in found] == [
        [(e.start, e.end, e.type) for e in entities] for entities in alone[0]
    ]
    assert inside == [alone[1]]


def test_the_version_names_the_folder_and_what_is_in_it(served: ServedModel, model_root: Path) -> None:
    assert served.version == f"step2@{digest_of(model_root / 'step2')[:12]}"
    assert digest_of(model_root / "step2") != digest_of(model_root / "step3")


def test_a_folder_that_changes_while_it_is_read_is_refused(model_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter(["before", "after"])
    monkeypatch.setattr("ner_cl_serve.served.digest_of", lambda path: next(digests))
    with pytest.raises(ModelError, match="changed while it was read"):
        load_served(model_root / "step2", Settings(model_root=model_root))


def test_what_is_only_needed_to_learn_more_is_let_go(served: ServedModel) -> None:
    assert (served.model.strategy_state, served.model.kept_sentences) == ({}, {})
