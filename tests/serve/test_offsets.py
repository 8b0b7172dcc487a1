"""UTF-16 offsets beside Python's own encoder."""

from hypothesis import given
from hypothesis import strategies as st

from ner_cl.types import Entity
from ner_cl_serve.offsets import utf16_spans


@given(text=st.text(st.sampled_from("aé東\U0001f600\U0001d518\u0301"), min_size=1), data=st.data())
def test_spans_cut_the_same_text_from_utf16(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    [(first, last)] = utf16_spans(text, [Entity(start, end, "X", text[start:end], 1.0, 1)])
    assert text.encode("utf-16-le")[2 * first : 2 * last].decode("utf-16-le") == text[start:end]
