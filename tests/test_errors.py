"""What a message quotes of another library's exception."""

import pytest

from ner_cl.errors import first_line


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  padded \n"), "padded"),
        (ValueError(), "ValueError"),
        (OSError(" \n"), "OSError"),
        (RuntimeError("x" * 500), "x" * 160),
    ],
)
def test_the_first_line_of_an_exception_or_its_name(error: Exception, quoted: str) -> None:
    assert first_line(error) == quoted
