"""A ranker finds what is clicked more, says where nothing is, and is plain data."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kdexport.commands.main import cli
from kdexport.content.clicks import Clicked, load_clicks
from kdexport.copywriting import clicks
from kdexport.copywriting.clicks import auc, groups_of, learn_clicks, merged, picks
from kdexport.copywriting.ranker import Ranker, features, load_ranker, save_ranker
from kdexport.errors import LIBRARIES, InputError, MissingExtraError
from tests.calling import call

PRODUCTS = ["kettle", "lamp", "bicycle", "desk", "jacket", "tea", "mat", "tent", "pan", "loaf"]
WORDS = ["warm", "light", "blue", "round", "quiet", "small", "fast", "plain", "soft", "new"]
SHOWN = 2000


def table(effect: float, n: int = 160, seed: int = 0) -> list[Clicked]:
    """Texts of which each second offers something free; that is clicked more by ``effect``."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        words = draw.sample(WORDS, 4)
        offer = "free returns" if number % 2 else "many returns"
        text = f"{' '.join(words)} {draw.choice(PRODUCTS)} with {offer}"
        rate = 0.02 * (1 + effect * (number % 2)) * draw.uniform(0.9, 1.1)
        clicked = sum(draw.random() < rate for _ in range(SHOWN))
        rows.append(Clicked(text=text, channel="sms", impressions=SHOWN, clicks=clicked))
    return rows


def test_what_is_clicked_more_is_learnt_and_shown_on_texts_held_out() -> None:
    ranker, found = learn_clicks(table(1.0), "clicks.csv")
    assert found.lift.low > 1.15
    # Of eight texts one is free but for once in 256: 4 % of them are clicked, of any 3 %.
    assert found.lift.value == pytest.approx(4 / 3, abs=0.06)
    assert found.picked / found.chance == pytest.approx(found.lift.value)
    assert found.log_loss < found.log_loss_base
    assert (found.auc or 0) > 0.55 and (found.auc_within or 0) > 0.55
    assert ranker.weights["word free"] > 0 > ranker.weights["word many"]
    free, many = (ranker.score(f"A lamp with {word} returns", "sms") for word in ("free", "many"))
    assert free > 1.5 * many
    assert ranker.held_out["n_texts"] == 160


def test_where_nothing_is_clicked_more_it_is_said() -> None:
    """The interval covers 1, and nothing is made up beside the base rate."""
    _, found = learn_clicks(table(0.0), "clicks.csv")
    assert found.lift.covers(1.0)
    assert found.log_loss == pytest.approx(found.log_loss_base, rel=0.01)


def test_the_file_scores_as_the_model_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn's own probabilities, and those of the file, read by the standard library."""
    models = []
    fit = clicks._regression

    def kept(matrix: object, *others: object) -> object:
        models.append((matrix, fit(matrix, *others)))  # type: ignore[arg-type]
        return models[-1][1]

    monkeypatch.setattr(clicks, "_regression", kept)
    rows = merged(table(1.0, n=60))
    ranker, _ = learn_clicks(rows, "clicks.csv")
    save_ranker(tmp_path / "ranker.json", ranker)
    read = load_ranker(tmp_path / "ranker.json")
    matrix, model = models[-1]
    wanted = model.predict_proba(matrix)[:, 1]
    found = [read.score(row.text, row.channel) for row in rows]
    assert found == pytest.approx(wanted.tolist(), rel=1e-4)  # weights have six digits


def test_near_equal_texts_are_never_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row.model_copy(update={"text": row.text + end})
        for row in table(1.0, n=30)
        for end in ("", "!", " today")
    ]
    rows = merged(rows)
    groups = groups_of(rows)
    seen = []
    fit = clicks._fitted

    def kept(found: object, own: object, shown: object, of: np.ndarray) -> Ranker:  # type: ignore[type-arg]
        seen.append(set(of.tolist()))
        return fit(found, own, shown, of)  # type: ignore[arg-type]

    monkeypatch.setattr(clicks, "_fitted", kept)
    learn_clicks(rows, "clicks.csv")
    *folds, last = seen
    assert last == set(groups.tolist()) and len(folds) == clicks.N_FOLDS
    held_out = [last - fold for fold in folds]
    assert sum(map(len, held_out)) == len(last)
    assert set.union(*held_out) == last


def clicked(text: str, group: str = "") -> Clicked:
    return Clicked(text=text, channel="sms", group=group, impressions=10, clicks=1)


def test_groups_are_texts_alike_and_those_of_one_purpose() -> None:
    texts = ["a b c d e", "A b c d", "x y z", "a b c d e f", "p q", "b c d e f"]
    assert groups_of([clicked(text) for text in texts]).tolist() == [0, 0, 1, 0, 2, 0]
    named = [clicked("a b", "one"), clicked("c d", "two"), clicked("e f", "one")]
    assert groups_of(named).tolist() == [0, 1, 0]


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), min_size=1, max_size=12))
def test_pairs_that_are_alike_are_those_of_all_comparisons(words: list[set[str]]) -> None:
    sets = [frozenset(one) for one in words]
    wanted = {
        (at, other)
        for at in range(len(sets))
        for other in range(at)
        if len(sets[at] & sets[other]) >= clicks.ALIKE * len(sets[at] | sets[other])
    }
    assert set(clicks._alike(sets)) == wanted


def test_rows_of_one_text_are_added_up() -> None:
    rows = [clicked("Tea!"), clicked("tea!"), clicked("Tea!", "other")]
    assert [(row.impressions, row.clicks) for row in merged(rows)] == [(20, 2), (10, 1)]


def test_auc_and_picks_are_those_of_counting() -> None:
    """AUC by all pairs of impressions; the best of eight by a million draws."""
    draw = np.random.default_rng(0)
    scores = np.array([0.3, 0.1, 0.1, 0.9, 0.5])
    own, shown = np.array([3.0, 1, 0, 4, 2]), np.array([5.0, 6, 3, 7, 4])
    hit, miss = np.repeat(scores, own.astype(int)), np.repeat(scores, (shown - own).astype(int))
    wins = (hit[:, None] > miss).mean() + (hit[:, None] == miss).mean() / 2
    everything = [np.arange(5)]
    assert auc(everything, scores, own, shown) == pytest.approx(wins)
    assert auc([np.array([0])], scores, np.zeros(5), shown) is None
    rates = own / shown
    drawn = draw.integers(5, size=(1_000_000, clicks.CANDIDATES))
    lots = draw.random(drawn.shape) * 1e-6
    best = drawn[np.arange(len(drawn)), (scores[drawn] + lots).argmax(axis=1)]
    picked, chance, lift = picks(everything, np.arange(5), scores, rates)
    assert picked == pytest.approx(rates[best].mean(), abs=1e-3)
    assert chance == pytest.approx(rates.mean())
    assert lift.value == pytest.approx(picked / chance)
    assert picks(everything, np.arange(5), np.zeros(5), rates)[2].value == pytest.approx(1)


def test_features_have_names() -> None:
    found = features("Save 20% on Tea!", "sms", "students")
    assert found["word tea"] == found["pair 0 on"] == found["word save for students"] == 1 / 11**0.5
    assert found["price or percentage"] == found["exclamation"] == found["figures"] == 1
    assert found["capitals"] == 2 / 9
    assert found["question"] == found["emoji"] == 0
    assert features("立即购买!", "sms", "")["pair 购 买"] > 0
    assert features("立即购买!", "sms", "")["exclamation"] == 1


def test_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has 9 groups .* 10 are needed"):
        learn_clicks([clicked(str(n)) for n in range(9)], "clicks.csv")
    none = [row.model_copy(update={"clicks": 0}) for row in table(0.0, n=40)]
    with pytest.raises(InputError, match="none or all was clicked"):
        learn_clicks(none, "clicks.csv")
    monkeypatch.setitem(LIBRARIES, "ranking", ("sklearn_that_is_not_there",))
    with pytest.raises(MissingExtraError, match="is missing"):
        learn_clicks(table(0.0), "clicks.csv")


def test_clicks_of_one_row_alone_can_be_learnt_from() -> None:
    """No fold is without either kind."""
    rows = [row.model_copy(update={"clicks": 0}) for row in table(0.0, n=40)]
    rows[3] = rows[3].model_copy(update={"clicks": 5})
    assert learn_clicks(rows, "clicks.csv")[1].n_clicks == 5


def test_the_command_writes_a_ranker_and_says_what_it_is_worth(tmp_path: Path) -> None:
    path, out = tmp_path / "clicks.csv", tmp_path / "ranker.json"
    lines = [f"{row.text},sms,{row.impressions},{row.clicks}\n" for row in table(1.0)]
    path.write_text("text,channel,impressions,clicks\n" + "".join(lines))
    assert len(load_clicks(path)) == 160
    ran = CliRunner().invoke(cli, ["content", "learn", str(path), "-o", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert load_ranker(out).held_out == told
    again = tmp_path / "again.json"
    shown = CliRunner().invoke(cli, ["content", "learn", str(path), "-o", str(again)]).stdout
    assert "160 texts in" in shown and "lift" in shown and "no better than chance" not in shown
    assert again.read_bytes() == out.read_bytes()


def test_a_ranker_is_read_without_numpy_and_scikit_learn(tmp_path: Path) -> None:
    save_ranker(tmp_path / "ranker.json", Ranker(intercept=-3, weights={"word tea": 1}))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from kdexport.copywriting.ranker import load_ranker\n"
        f"print(load_ranker(Path({str(tmp_path / 'ranker.json')!r})).score('tea', 'sms'))\n"
        "assert not {'numpy', 'sklearn', 'scipy'} & sys.modules.keys(), sys.modules.keys()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) == pytest.approx(1 / (1 + np.exp(3 - 1)), abs=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no ranker; make one"),
        ('{"format": "other", "intercept": 0, "weights": {}}', "is no ranker"),
        ('{"intercept": 0, "weights": {"word a": NaN}}', "is no ranker"),
        ('{"intercept": 0, "weights": {"word a": "x"}}', "is no ranker"),
        (None, "there is no such file"),
    ],
)
def test_a_bad_ranker_is_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "ranker.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        load_ranker(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Tea,sms,10,11", ":2: has 11 clicks of 10 impressions"),
        ("Tea,smss,10,1", ":2: channel: unknown channel 'smss'; did you mean 'sms'?"),
        ("Tea,sms,many,1", ":2: impressions: should be a whole number"),
        ("Tea,sms,0,0", ":2: impressions: input should be greater"),
        (",sms,10,1", ":2: text: is missing"),
    ],
)
def test_a_bad_row_is_one_line(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text(f"text,channel,impressions,clicks\n{row}\n")
    code, told = call("content", "learn", path, "-o", tmp_path / "ranker.json")
    assert code == 2 and told.startswith(f"kdexport: {path}{said}") and told.count("\n") == 1
    assert not (tmp_path / "ranker.json").exists()
