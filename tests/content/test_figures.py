from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.figures import figures_of, unsupported


def missing(copy: str, *known: str, languages: Sequence[str] = ("en",)) -> list[str]:
    """The figures of a copy that its brief does not have."""
    facts = [figure for text in known for figure in figures_of(text, languages)]
    return [copy[slice(*f.span)] for f in unsupported(figures_of(copy, languages), facts)]


SPELLINGS = [
    ["1,000", "1.000", "1 000", "1000", "1'000", "1\u202f000", "１０００"],
    ["1,234.50", "1.234,50", "1234.5", "1 234,50", "1'234.50"],
    ["50 %", "50%", "50 percent", "50.0 per cent", "fifty percent", "Half-price", "half off"],
    ["$5", "5 USD", "USD 5", "US$5", "5 dollars", "$5.00", "five dollars"],
    ["€1.5 million", "1,500,000 EUR", "1.500.000 €"],
    ["24 December 2026", "December 24, 2026", "2026-12-24", "24.12.2026", "24/12/2026"],
    ["24 December", "the 24th of December", "Dec 24"],
    ["3/4/2026", "3 April", "March 4, 2026"],
    ["5 pm", "5:00 p.m.", "17:00", "5.00 pm"],
    ["two", "2"],
    ["twenty-five", "25", "Twenty five", "twenty\u2011five"],
    ["one million", "1,000,000", "1 million"],
    ["2k", "2,000"],
]  # fmt: skip


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda spellings: spellings[0])
def test_a_figure_is_the_same_in_every_usual_spelling(spellings: list[str]) -> None:
    for spelling in spellings[1:]:
        assert missing(f"Now {spelling}!", f"it is {spellings[0]}.") == []
        assert missing(f"Now {spellings[0]}!", f"it is {spelling}.") == []


@pytest.mark.parametrize(
    ("copy", "fact"),
    [
        ("1,000", "100"),
        ("1.5", "15"),
        ("50%", "50"),
        ("50", "50%"),
        ("$5", "5"),
        ("$5", "€5"),
        ("5 December", "5 November"),
        ("5 December 2026", "5 December 2025"),
        ("three", "two"),
        ("5 am", "5 pm"),
        ("2,000", "2,000,000"),
        ("12", "2026-11-24"),
        ("fifty percent", "50 days"),
        ("twenty-five", "20 and 5"),
        ("#1", "one litre"),
        ("half price", "the price of 50 loaves"),
    ],
)
def test_another_figure_is_not_the_same(copy: str, fact: str) -> None:
    assert missing(copy, fact) == [copy]


@pytest.mark.parametrize(
    ("language", "spellings"),
    [
        ("de", ["50 Prozent", "50 %"]),
        ("de", ["24. Dezember", "24.12.", "24.12.2026"]),
        ("de", ["zwei Minuten", "2 Minuten"]),
        ("de", ["zwei Prozent", "2 %"]),
        ("de", ["fünfunddreißig Euro", "35 €"]),
        ("de", ["zum halben Preis", "50 %"]),
        ("de", ["einundzwanzig", "21"]),
        ("de", ["17 Uhr", "17:00 Uhr", "17:00"]),
        ("de", ["2 Mio. €", "2.000.000 Euro"]),
        ("fr", ["1 234,50 €", "1234,5 euros"]),
        ("fr", ["24 décembre 2026", "24 décembre"]),
        ("fr", ["quatre-vingt-dix-neuf euros", "99 €"]),
        ("fr", ["vingt et un", "vingt-et-un", "21"]),
        ("fr", ["soixante-quinze pour cent", "75 %"]),
        ("fr", ["17h30", "17:30"]),
        ("es", ["24 de diciembre de 2026", "24/12/2026"]),
        ("es", ["2 mil", "dos mil", "2.000"]),
        ("es", ["treinta y cinco por ciento", "35 %"]),
        ("es", ["un millón", "1.000.000"]),
        ("zh", ["5元", "¥5", "5 CNY"]),
        ("zh", ["百分之50", "50%", "百分之五十", "半价", "打五折", "5折"]),
        ("zh", ["八五折", "85折", "8.5折", "八点五折", "15%"]),
        (
            "zh",
            [
                "2026年12月24日",
                "12月24日",
                "2026-12-24",
                "十二月二十四日",
                "二〇二六年十二月二十四日",
            ],
        ),
        ("zh", ["3万", "30000", "三万人"]),
        ("zh", ["两分钟烧开", "2分钟", "二分钟"]),
        ("zh", ["一百二十五元", "125元", "¥125"]),
        ("zh", ["一千零五十克", "1050克"]),
        ("zh", ["一亿两千万人", "120000000"]),
        ("zh", ["早上八点", "8点", "8:00"]),
        ("zh", ["百分之百", "100%"]),
        ("zh", ["十天", "10 天"]),
        ("zh", ["约500克", "500 克"]),
    ],
)
def test_figures_are_read_in_each_language(language: str, spellings: list[str]) -> None:
    for spelling in spellings[1:]:
        assert missing(spelling, spellings[0], languages=(language,)) == []
        assert missing(spellings[0], spelling, languages=(language,)) == []


def test_a_price_or_a_date_may_lose_what_makes_it_one_but_not_gain_it() -> None:
    assert missing("from 30 a month", "from $30 a month") == []
    assert missing("the 24", "24 December") == []
    assert missing("from $30 a month", "30 loaves a month") == ["$30"]


def test_an_article_may_be_a_number_in_the_brief_and_is_none_in_the_copy() -> None:
    assert missing("1 litre", "one litre") == missing("one for all", "") == []
    assert missing("1 Liter, ein Griff", "ein Liter", languages=("de",)) == []
    assert missing("one percent off", "one litre") == ["one percent"]
    assert missing("the #1 tea", "tests rank it #1") == missing("the #1", "number 1 in tests") == []


@pytest.mark.parametrize(
    "copy",
    [
        "一杯好茶,十分美味",
        "第二天送达",
        "两三分钟",
        "三四个",
        "几十种",
        "千万别错过",
        "百年老店",
        "万一",
        "三明治",
        "一点也不",
        "好一个",
    ],
)
def test_not_all_chinese_numerals_are_figures(copy: str) -> None:
    assert missing(copy, "", languages=("zh",)) == []


def test_a_discount_that_the_brief_does_not_have_is_found_in_any_words() -> None:
    assert missing("全场五折", "全场八折", languages=("zh",)) == ["五折"]
    assert missing("限时半价", "20% off", languages=("zh",)) == ["半价"]
    assert missing("now half price", "20 % off") == ["half price"]
    assert missing("jetzt zum halben Preis", "20 %", languages=("de",)) == ["halben Preis"]


def test_models_are_no_numbers_and_neighbours_are_two() -> None:
    assert figures_of("The X200 and the b2b", ("en",)) == []
    assert missing("5 100 g bags", "5 bags of 100 g") == []
    assert missing("open 24/7", "open") == ["24", "7"]
    assert missing("A pH of 5.5.", "pH of 5.5") == []
    assert missing("Save 15% on 3 loaves.", "3 loaves, 10 % off") == ["15%"]


@given(st.integers(0, 10**9), st.sampled_from(["", ",", ".", " ", "'"]))
def test_whole_numbers_in_thousands(number: int, separator: str) -> None:
    spelled = f"{number:,}".replace(",", separator)
    (figure,) = figures_of(f"about {spelled} loaves", ("en",))
    assert Decimal(number) in figure.values
    assert missing(f"about {spelled} loaves", f"{number}") == []


@given(st.integers(0, 10**6), st.integers(0, 99))
def test_prices_in_both_notations(whole: int, cents: int) -> None:
    english, german = (
        f"${whole:,}.{cents:02}",
        f"{whole:,}.{cents:02} USD".translate({44: 46, 46: 44}),
    )
    assert missing(english, german) == missing(german, english) == []


@given(st.dates(date(1900, 1, 1), date(2999, 12, 30)))
def test_dates_in_every_notation(day: date) -> None:
    english = f"{day:%B} {day.day}, {day.year}"
    for written in (f"{day.isoformat()}", f"{day.day} {day:%B} {day.year}", f"{day:%d.%m.%Y}"):
        assert missing(written, english) == missing(english, written) == []
    assert missing(f"{day:%d.%m.%Y}", f"{day + timedelta(1):%d.%m.%Y}") == [f"{day:%d.%m.%Y}"]


@given(st.text())
def test_spans_are_of_the_text_and_a_text_supports_itself(text: str) -> None:
    figures = figures_of(text, ("en", "zh"))
    assert all(0 <= begin < end <= len(text) for begin, end in (f.span for f in figures))
    assert unsupported(figures, figures) == []
