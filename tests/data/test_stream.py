"""The stream: hiding, the test set after each step, orders of types, refusals, and the pinned files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.protocols import allocate
from ner_cl.data.stream import Corpus, Step, build_stream, fingerprint, order_types
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Sentence, Span

TYPES = ("PER", "LOC", "ORG", "MISC")
STEPS = [["PER"], ["LOC", "ORG"]]
PINNED = sorted((Path(__file__).parents[2] / "configs" / "streams").glob("*.yaml"))
LICENSED = {"conll2003": 8, "ontonotes5": 6}  # templates without data, with their number of published orders


def sentence(number: int, *types: str) -> Sentence:
    words = (f"s{number}", *(type_.lower() for type_ in types))
    spans = tuple(Span(place, place + 1, type_) for place, type_ in enumerate(types, start=1))
    return Sentence(words, spans, frozenset(TYPES))


def make_corpus(size: int = 24) -> Corpus:
    rows = [("PER",), ("LOC", "PER"), ("ORG",), ("MISC", "LOC", "ORG"), (), ("PER", "ORG", "LOC")]
    train = tuple(sentence(number, *rows[number % 6]) for number in range(size))
    dev = tuple(sentence(100 + number, *rows[number % 6]) for number in range(12))
    test = tuple(sentence(200 + number, *rows[number % 6]) for number in range(12))
    return Corpus(train, dev, test, name="toy")


def visible(sentences: tuple[Sentence, ...]) -> set[str]:
    return {span.type for each in sentences for span in each.spans}


@pytest.mark.parametrize("protocol", ["disjoint", "greedy", "overlap"])
def test_steps_see_only_their_types(protocol: str) -> None:
    stream = build_stream(make_corpus(), STEPS, protocol=protocol)
    assert (stream.corpus_name, stream.protocol, stream.types) == ("toy", protocol, ("PER", "LOC", "ORG"))
    assert [step.number for step in stream.steps] == [1, 2]
    for step, types in zip(stream.steps, STEPS, strict=True):
        assert step.types == tuple(types)
        assert visible(step.train) == set(types)
        assert {each.annotated_types for each in (*step.train, *step.dev)} == {frozenset(types)}


def test_test_set_is_whole_and_grows_by_type() -> None:
    corpus = make_corpus()
    stream = build_stream(corpus, STEPS)
    assert [each.words for each in stream.test_at(1)] == [each.words for each in corpus.test]
    assert visible(stream.test_at(1)) == {"PER"}
    assert visible(stream.test_at(2)) == {"PER", "LOC", "ORG"}  # MISC is in no step
    assert stream.test_at(2) == stream.test
    assert {each.annotated_types for each in stream.test_at(1)} == {frozenset({"PER"})}


def test_seen_and_its_bounds() -> None:
    stream = build_stream(make_corpus(), STEPS)
    assert stream.seen(1) == ("PER",)
    assert stream.seen(2) == stream.types
    for number in (0, 3, -1):
        with pytest.raises(DataError, match=f"steps 1 to 2, not {number}"):
            stream.seen(number)


@pytest.mark.parametrize("protocol", ["disjoint", "greedy", "overlap"])
def test_everything_until_shows_all_seen_types_once(protocol: str) -> None:
    corpus = make_corpus()
    stream = build_stream(corpus, STEPS, protocol=protocol)
    words = [{each.words for each in step.train} for step in stream.steps]
    for number in (1, 2):
        everything = stream.everything_until(number)
        counts = Counter(each.words for each in everything)
        assert set(counts) == set().union(*words[:number])
        assert set(counts.values()) == {1}
        by_words = {each.words: each for each in corpus.train}
        assert all(each == by_words[each.words].restrict(stream.seen(number)) for each in everything)
    if protocol == "overlap":  # the sentence with PER and LOC is in both steps
        assert sum(len(step.train) for step in stream.steps) > len(stream.everything_until(2))


@pytest.mark.parametrize("protocol", ["disjoint", "greedy", "overlap"])
def test_everything_until_with_the_annotation_of_its_steps_alone(protocol: str) -> None:
    stream = build_stream(make_corpus(), STEPS, protocol=protocol, dev="slice")
    for parts, found in (
        ([step.train for step in stream.steps], stream.everything_until(2, own=True)),
        ([step.dev for step in stream.steps], stream.dev_everything_until(2, own=True)),
    ):
        of_steps = [{each.words: each for each in part} for part in parts]
        assert len(found) == len(of_steps[0].keys() | of_steps[1].keys())
        for each in found:
            given = [step[each.words] for step in of_steps if each.words in step]
            assert each.annotated_types == frozenset().union(*(one.annotated_types for one in given))
            assert set(each.spans) == {span for one in given for span in one.spans}
    assert stream.everything_until(1, own=True) == stream.everything_until(1)


def test_equal_sentences_of_the_corpus_stay_apart() -> None:
    corpus = make_corpus()
    twice = replace(corpus, train=corpus.train + corpus.train)
    assert len(build_stream(twice, STEPS).everything_until(2)) == 2 * len(corpus.train)


@pytest.mark.parametrize(
    ("protocol", "dev", "sizes"),
    [
        ("disjoint", "auto", [6, 6]),
        ("disjoint", "whole", [12, 12]),
        ("greedy", "auto", [12, 12]),
        ("greedy", "slice", [4, 8]),
        ("overlap", "auto", [6, 8]),
        ("overlap", "whole", [12, 12]),
    ],
)
def test_dev_modes(protocol: str, dev: str, sizes: list[int]) -> None:
    stream = build_stream(make_corpus(), STEPS, protocol=protocol, dev=dev)
    assert [len(step.dev) for step in stream.steps] == sizes
    assert [visible(step.dev) <= set(step.types) for step in stream.steps] == [True, True]


@pytest.mark.parametrize("protocol", ["disjoint", "greedy", "overlap"])
@pytest.mark.parametrize("dev", ["auto", "slice", "whole"])
def test_dev_may_be_empty(protocol: str, dev: str) -> None:
    stream = build_stream(replace(make_corpus(), dev=()), STEPS, protocol=protocol, dev=dev)
    assert [step.dev for step in stream.steps] == [(), ()]


def test_unknown_type_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="type 'PERS' never occurs in toy, did you mean 'PER'"):
        build_stream(make_corpus(), [["PERS"], ["LOC"]])


def test_type_in_two_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="type PER is already in step 1"):
        build_stream(make_corpus(), [["PER"], ["LOC", "PER"]])


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_corpus_is_refused(part: str) -> None:
    with pytest.raises(DataError, match=f"toy has no {part}.* sentences"):
        build_stream(replace(make_corpus(), **{part: ()}), STEPS)


def test_step_without_a_mention_is_refused() -> None:
    train = (sentence(0, "PER"), *(sentence(number) for number in range(1, 10)))
    corpus = Corpus(train, (), (sentence(11, "PER", "LOC"),), name="toy")
    with pytest.raises(DataError, match=r"step 2: none of its \d+ training sentences mentions LOC .*overlap, seed 13"):
        build_stream(corpus, [["PER"], ["LOC"]], protocol="overlap")


def test_building_is_deterministic_and_the_seed_counts() -> None:
    corpus = make_corpus(120)
    one, same, other = (build_stream(corpus, STEPS, seed=seed) for seed in (13, 13, 14))
    assert one == same
    hashes = [[step.data_hash for step in stream.steps] for stream in (one, same, other)]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])


def test_fingerprint_is_of_the_content() -> None:
    base = sentence(1, "PER")
    assert fingerprint([base]) == fingerprint([replace(base, source="elsewhere:3", text=None)])
    changed = [
        replace(base, words=("s1", "Per")),
        replace(base, spans=()),
        base.restrict(["PER"]),
        base.with_spans([Span(0, 2, "PER")], base.annotated_types),
    ]
    assert len({fingerprint([each]) for each in (base, *changed)}) == 5
    assert fingerprint([sentence(1), sentence(2)]) != fingerprint([sentence(2), sentence(1)])
    assert fingerprint([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing


def test_fingerprint_never_changes() -> None:
    """Histories of old models hold these values, so the way they are made is frozen."""
    ada = Sentence(("Ada", "naïve", "\ud800"), (Span(0, 1, "PER"),), frozenset({"PER", "LOC"}))
    assert fingerprint([ada]) == "c05dcffe8df3015a65594e5a62e2309280cacf1921ceef2d0547c643b98bab5d"


def test_orders_of_types() -> None:
    corpus = make_corpus()  # PER 12, ORG 12, LOC 12, MISC 4
    assert order_types(corpus) == (("LOC",), ("MISC",), ("ORG",), ("PER",))
    assert order_types(corpus, order="frequency", increment=2) == (("LOC", "ORG"), ("PER", "MISC"))
    assert order_types(corpus, order=["MISC", "PER", "LOC"], first=2) == (("MISC", "PER"), ("LOC",))
    assert order_types(corpus, increment=3) == (("LOC", "MISC", "ORG"), ("PER",))
    assert order_types(corpus, first=9) == (("LOC", "MISC", "ORG", "PER"),)


def test_random_order_is_fixed_by_its_seed() -> None:
    corpus = make_corpus()
    orders = [order_types(corpus, order="random", seed=seed) for seed in range(20)]
    assert orders == [order_types(corpus, order="random", seed=seed) for seed in range(20)]
    assert len(set(orders)) > 10
    assert {tuple(sorted(type_ for step in order for type_ in step)) for order in orders} == {tuple(sorted(TYPES))}


@given(first=st.integers(1, 6), increment=st.integers(1, 6))
def test_increments(first: int, increment: int) -> None:
    steps = order_types(make_corpus(6), first=first, increment=increment)
    assert [type_ for step in steps for type_ in step] == sorted(TYPES)
    assert len(steps[0]) == min(first, 4)
    assert all(len(step) == increment for step in steps[1:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "frequent"}, "unknown type order 'frequent', did you mean 'frequency'"),
        ({"order": ["PER", "LOCK"]}, "'LOCK' never occurs in the training part of toy, did you mean 'LOC'"),
        ({"order": ["PER", "PER"]}, "already in step 1"),
        ({"increment": 0}, "at least one type"),
        ({"first": 0}, "at least one type"),
    ],
)
def test_wrong_orders_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        order_types(make_corpus(), **options)


def test_nothing_to_order_is_refused() -> None:
    with pytest.raises(DataError, match="mentions no type"):
        order_types(Corpus((sentence(0),), (), (), name="toy"))


def test_corpus_types_and_short_repr() -> None:
    corpus = make_corpus()
    assert corpus.types == tuple(sorted(TYPES))
    assert len(repr(build_stream(corpus, STEPS))) < 300
    assert repr(Step(1, ("PER",), (), ())) == "Step(number=1, types=('PER',))"


def read_conll(path: Path, types: frozenset[str]) -> tuple[Sentence, ...]:
    """The prepared corpora are strict IOB2 in two columns, so a dozen lines read them."""
    sentences = []
    for block in path.read_text(encoding="utf-8").strip("\n").split("\n\n"):
        rows = [line.split("\t") for line in block.split("\n")]
        spans: list[Span] = []
        for place, (_, tag) in enumerate(rows):
            if tag.startswith("B-"):
                spans.append(Span(place, place + 1, tag[2:]))
            elif tag.startswith("I-"):
                spans[-1] = replace(spans[-1], end=place + 1)
        sentences.append(Sentence(tuple(row[0] for row in rows), tuple(spans), types))
    return tuple(sentences)


@pytest.mark.parametrize("path", PINNED, ids=[path.stem for path in PINNED])
def test_pinned_file_is_well_formed(path: Path) -> None:
    pinned = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(pinned) <= {"name", "corpus", "steps", "protocol", "orders", "seed", "dev"}
    assert pinned["name"] == path.stem
    assert set(pinned["corpus"]) == {"format", "train", "dev", "test"}
    assert pinned["protocol"] in {"disjoint", "greedy", "overlap"}
    types = sorted(type_ for step in pinned["steps"] for type_ in step)
    assert len(set(types)) == len(types)
    orders = pinned.get("orders", [pinned["steps"]])
    assert orders[0] == pinned["steps"]
    assert all(sorted(type_ for step in order for type_ in step) == types for order in orders)
    assert len({json.dumps(order) for order in orders}) == len(orders) == LICENSED.get(path.stem, 1)


@pytest.mark.parametrize("path", [path for path in PINNED if path.stem not in LICENSED], ids=lambda path: path.stem)
def test_pinned_stream_builds_from_its_corpus(path: Path, shared_data: Path) -> None:
    pinned = yaml.safe_load(path.read_text(encoding="utf-8"))
    types = frozenset(type_ for step in pinned["steps"] for type_ in step)
    parts = {part: read_conll(shared_data / pinned["corpus"][part], types) for part in ("train", "dev", "test")}
    corpus = Corpus(**parts, name=pinned["name"])
    assert set(corpus.types) == types
    stream = build_stream(corpus, pinned["steps"], protocol=pinned["protocol"])
    assert stream.types == tuple(type_ for step in pinned["steps"] for type_ in step)
    assert len(stream.test_at(1)) == len(parts["test"])
    assert all(visible(step.train) == set(step.types) for step in stream.steps)
    for seed in () if pinned["protocol"] == "overlap" else (1, 2):  # a run over seeds must not stop half way
        build_stream(corpus, pinned["steps"], protocol=pinned["protocol"], seed=seed)


@pytest.mark.parametrize("name", ["wnut17", "crossner_politics", "gum"])
def test_our_own_orders_are_by_frequency(name: str, shared_data: Path, repository: Path) -> None:
    pinned = yaml.safe_load((repository / "configs" / "streams" / f"{name}.yaml").read_text(encoding="utf-8"))
    types = frozenset(type_ for step in pinned["steps"] for type_ in step)
    train = read_conll(shared_data / pinned["corpus"]["train"], types)
    steps = order_types(Corpus(train, (), ()), order="frequency", increment=len(pinned["steps"][0]))
    assert steps == tuple(tuple(step) for step in pinned["steps"])


def test_fewnerd_order_is_the_published_one(shared_data: Path, repository: Path) -> None:
    pinned = yaml.safe_load((repository / "configs" / "streams" / "fewnerd66.yaml").read_text(encoding="utf-8"))
    published = json.loads((shared_data / "fewnerd36" / "steps.json").read_text(encoding="utf-8"))
    assert pinned["steps"] == [published[str(number)] for number in range(11)]


def test_overlap_gives_the_published_task_sizes(shared_data: Path, repository: Path) -> None:
    """O_CILNER prints how many sentences its 11 development files hold; `fewnerd66` is their union.

    The union keeps one copy of a repeated sentence (194 copies fewer, and 34 words with two labels), hence the 1.1 %.
    """
    published = (2656, 2788, 1652, 1326, 1477, 6941, 1852, 4416, 3114, 1706, 1443)
    pinned = yaml.safe_load((repository / "configs" / "streams" / "fewnerd66.yaml").read_text(encoding="utf-8"))
    types = frozenset(type_ for step in pinned["steps"] for type_ in step)
    parts = [read_conll(shared_data / pinned["corpus"][part], types) for part in ("train", "dev", "test")]
    slices = allocate([each for part in parts for each in part], pinned["steps"], protocol="overlap", seed=13)
    assert all(0.989 * size <= len(part) <= size for size, part in zip(published, slices, strict=True))
