"""The order in which waiting texts are computed."""

from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from ner_cl.types import Entity
from ner_cl_serve.fair_queue import FairQueue, Job, Kind, Work, estimated_pieces


class Silent:
    """Finds nothing."""

    def find(
        self,
        texts: Sequence[str],
        *,
        types: Sequence[str] | None = None,
        nested: bool = False,
        between: Callable[[], None] | None = None,
    ) -> list[list[Entity]]:
        return [[] for _ in texts]


KIND = Kind(Silent())
OTHER = Kind(KIND.finder, types=("PER",))
SHORT, LONG = "x" * 40, "x" * 4000  # 13 and 1003 pieces


def queue_of(*jobs: Job, batch_tokens: int = 100, most_tokens: int = 10_000) -> FairQueue:
    queue = FairQueue(batch_tokens=batch_tokens, most_tokens=most_tokens)
    for job in jobs:
        queue.put(job)
    return queue


def everything(queue: FairQueue) -> list[Work]:
    found = []
    while (work := queue.take_long() or queue.take_short()) is not None:
        found.append(work)
    return found


def test_a_single_text_is_in_the_next_batch_however_many_wait() -> None:
    queue = queue_of(Job(KIND, [SHORT] * 500), single := Job(KIND, [SHORT]))
    first = queue.take_short()
    assert first is not None
    assert (single, 0) in first.parts
    assert first.pieces <= 100
    assert len(first.parts) == 100 // estimated_pieces(SHORT)


def test_who_was_served_goes_to_the_end() -> None:
    queue = queue_of(*(jobs := [Job(KIND, [SHORT] * 9) for _ in range(10)]))
    first, second = queue.take_short(), queue.take_short()
    assert first is not None
    assert second is not None
    assert [job for job, _ in first.parts] == jobs[:7]
    assert [job for job, _ in second.parts] == [*jobs[7:], *jobs[:4]]


def test_texts_of_different_kinds_are_never_computed_together() -> None:
    queue = queue_of(Job(KIND, [SHORT] * 3), Job(OTHER, [SHORT] * 3), Job(KIND, [SHORT]))
    kinds = [(work.kind, len(work.parts)) for work in everything(queue)]
    assert kinds == [(KIND, 4), (OTHER, 3)]


def test_long_texts_have_a_lane_of_their_own_and_take_turns() -> None:
    queue = queue_of(first := Job(KIND, [LONG, SHORT, LONG]), second := Job(KIND, [LONG]))
    long = [queue.take_long() for _ in range(3)]
    assert [work.parts for work in long if work is not None] == [((first, 0),), ((second, 0),), ((first, 2),)]
    assert queue.take_long() is None
    short = queue.take_short()
    assert short is not None
    assert short.parts == ((first, 1),)
    assert not queue


def test_what_is_discarded_is_not_computed() -> None:
    queue = queue_of(gone := Job(KIND, [SHORT, LONG]), kept := Job(KIND, [SHORT, LONG]))
    queue.discard(gone)
    assert {job for work in everything(queue) for job, _ in work.parts} == {kept}
    assert queue.pieces == 0


def test_a_full_queue_refuses_and_an_empty_one_takes_anything() -> None:
    queue = queue_of(most_tokens=50)
    assert queue.fits(Job(KIND, [LONG]))
    queue.put(Job(KIND, [SHORT]))
    assert queue.fits(Job(KIND, [SHORT]))
    assert not queue.fits(Job(KIND, [SHORT] * 3))


def test_a_long_text_that_waits_keeps_no_short_one_out() -> None:
    queue = queue_of(Job(KIND, [LONG]), most_tokens=50)
    assert queue.fits(Job(KIND, [SHORT]))
    assert not queue.fits(Job(KIND, [LONG]))


def test_pieces_are_estimated_by_letters_or_by_bytes() -> None:
    assert estimated_pieces("") == 3
    assert estimated_pieces("four") == 4
    assert estimated_pieces("東京" * 50) == 78


JOBS = st.lists(
    st.tuples(st.sampled_from([KIND, OTHER]), st.lists(st.integers(0, 300).map("x".__mul__), min_size=1, max_size=12)),
    max_size=12,
)


@given(jobs=JOBS, batch_tokens=st.integers(4, 100))
def test_every_text_is_computed_once_and_batches_keep_to_their_size(
    jobs: list[tuple[Kind, list[str]]], batch_tokens: int
) -> None:
    made = [Job(kind, texts) for kind, texts in jobs]
    queue = queue_of(*made, batch_tokens=batch_tokens)
    works = everything(queue)
    assert Counter(part for work in works for part in work.parts) == Counter(
        (job, index) for job in made for index in range(len(job.texts))
    )
    for work in works:
        assert work.pieces == sum(job.pieces[index] for job, index in work.parts)
        assert work.pieces <= batch_tokens or len(work.parts) == 1
        assert {job.kind for job, _ in work.parts} == {work.kind}
    assert queue.pieces == 0
