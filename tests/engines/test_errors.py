"""What messages say of unknown names, of long lists, and of other libraries' errors."""

from __future__ import annotations

import pytest

from engines.errors import UnknownNameError, did_you_mean, first_line, some_of


@pytest.mark.parametrize(
    ("name", "known", "question"),
    [
        ("W8A8", ["w4a8", "w8a8"], 'did you mean "w8a8"?'),
        ("fast ", ["default", "Fast"], 'did you mean "Fast"?'),
        ("schedule", ["schema", "schedules"], 'did you mean "schedules"?'),
        ("zzz", ["default"], None),
        ("x", [], None),
    ],
)
def test_the_most_similar_name_is_proposed_in_any_case(name: str, known: list[str], question: str | None) -> None:
    assert did_you_mean(name, known) == question


def test_message_lists_the_known_names_and_proposes_one() -> None:
    error = UnknownNameError("No such thing.", found="ont", known=("one", "two"))
    assert str(error) == 'No such thing.\n  found:    ont\n  expected: one or two\n  mend:     did you mean "one"?'
    assert error.exit_code == 2


def test_another_mend_serves_where_nothing_is_similar() -> None:
    assert str(UnknownNameError("No.", found="zzz", known=("one",), mend="look")).endswith("expected: one\n  mend:     look")


def test_long_list_names_the_first_and_counts_the_others() -> None:
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of([1, 2, 3, 4], 2) == "1, 2 and 2 more"


def test_first_line_of_an_error_that_may_say_nothing() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
