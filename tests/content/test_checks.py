import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.checks import clean_copy, share_passed, strays, why_drop, words_of


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


@pytest.mark.parametrize(
    ("language", "text", "clean"),
    [
        ("de", "Betreff: „Frisches Brot“", "Frisches Brot"),
        ("de", "Hier ist eine kurze SMS:\nBrot für alle.", "Brot für alle."),
        ("fr", "Objet : du pain frais", "du pain frais"),
        ("es", "Aquí tienes un asunto: Título: pan fresco", "pan fresco"),
        ("zh", "标题：「新鲜面包」", "新鲜面包"),
        ("zh", "以下是一条短信：\n短信：新鲜面包", "新鲜面包"),
        ("zh", "新鲜面包：清晨出炉", "新鲜面包：清晨出炉"),
        ("zh", "Subject: 新鲜面包", "新鲜面包"),
        ("en", "Betreff: bread", "Betreff: bread"),
    ],
)
def test_labels_are_known_in_each_language(language: str, text: str, clean: str) -> None:
    assert clean_copy(text, language) == clean


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


def test_chinese_says_more_with_fewer_characters() -> None:
    seen: set[str] = set()
    assert why_drop("茶。好", finished=True, seen=seen) == "empty"
    assert why_drop("春日新品上市", finished=True, seen=seen) is None
    assert why_drop("春日，新品上市！", finished=True, seen=seen) == "duplicate"
    assert why_drop("新鲜面包每天早上出炉" * 4, finished=True, seen=seen) == "repetitive"
    assert words_of("新鲜面包 Rye 2") == ["新", "鲜", "面", "包", "rye", "2"]


def test_copy_about_something_else_strays() -> None:
    facts = ["boils in two minutes", "holds its heat for 30 minutes"]
    assert strays("A cultural journey of tradition, for you.", facts)
    assert not strays("Tea in two minutes: it boils before you sit.", facts)
    assert not strays("Whatever it is.", [])


def test_whether_copy_strays_is_not_told_of_other_languages() -> None:
    """A word may stand in a run of characters, or in another form, or be translated."""
    assert not strays("两分钟就能烧开一升水。", ["一升容量", "两分钟烧开"], "zh")
    assert not strays("Kocht schnell.", ["boils in two minutes"], "de")
    assert strays("Kocht schnell.", ["boils in two minutes"], "en")


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
    assert share_passed("", "水烧开了，请用茶", finished=True, facts=["一升"], language="zh") == 1
