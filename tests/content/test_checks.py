import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.checks import clean_copy, share_passed, strays, why_drop


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('Subject: "Fresh bread, warm welcome"', "Fresh bread, warm welcome"),
        ("  Here is a short SMS:\nBread for you.  ", "Bread for you."),
        ('"Bread" and "butter"', '"Bread" and "butter"'),
        ("Email subject: Post: hello there", "hello there"),
    ],
)
def test_labels_and_quotes_go(text: str, clean: str) -> None:
    assert clean_copy(text) == clean


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean_copy(clean_copy(text)) == clean_copy(text)


def test_reasons_to_drop() -> None:
    seen: set[str] = set()
    assert why_drop("Hi.", finished=True, seen=seen) == "empty"
    assert why_drop("A text that goes on and", finished=False, seen=seen) == "truncated"
    assert why_drop("buy it now and " * 6, finished=True, seen=seen) == "repetitive"
    assert why_drop("Fresh bread, every day!", finished=True, seen=seen) is None
    assert why_drop("fresh bread every day", finished=True, seen=seen) == "duplicate"
    assert why_drop("Fresh cake, every day!", finished=True, seen=seen) is None


def test_copy_about_something_else_strays() -> None:
    facts = ["boils in two minutes", "holds its heat for 30 minutes"]
    assert strays("A cultural journey of tradition, for you.", facts)
    assert not strays("Tea in two minutes: it boils before you sit.", facts)
    assert not strays("Whatever it is.", [])


def test_the_share_of_checks_that_copy_passes() -> None:
    def share(
        added: str, *, finished: bool = True, facts: tuple[str, ...] = ("one litre",)
    ) -> float:
        return share_passed("Kettle:", added, finished=finished, facts=facts)

    assert share(" a litre of tea") == 1
    assert share(" a litre of tea", finished=False) == 0.75
    assert share(" of tea", finished=False) == 0.5
    assert share(" tea and so on" * 5, finished=False) == 0.25
    assert share(" tea and so on", facts=()) == 1
    assert share("") == 0
