"""A table of copies is the same whatever happened on the way to it."""

import csv
import io
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages
from kdexport.copywriting import bulk, copywriter
from kdexport.copywriting.candidates import Answer, Candidate, Overgenerator, Request
from kdexport.copywriting.copywriter import Asked
from kdexport.copywriting.fluency import Judge
from kdexport.copywriting.ranker import Ranker, save_ranker
from kdexport.copywriting.rows import CopyJournal, Row, journal_path
from kdexport.copywriting.sentiment import sentiment_scorer
from kdexport.data.pairs import Pair
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.quantize import quantize_bundle
from kdexport.measuring.evaluating import encode, open_model
from kdexport.runtime.quality import log_softmax, target_logits
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.runtime.token_scores import score_text
from tests.calling import call
from tests.models import make_llama

CHANNELS = ("email_subject", "ad_headline", "email_preheader")
N_BRIEFS = 9
FEW = ("--candidates", "3", "--keep", "2", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An int8 one: its texts depend on their neighbours, by rounding."""
    folder = tmp_path_factory.mktemp("bulk")
    made = export_bundle(make_llama(folder / "model"), folder / "fp32", name="tiny")
    return quantize_bundle(made, "int8", folder / "int8")


@pytest.fixture(scope="module")
def briefs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine briefs of three lengths; the fifth is too long for the model."""
    path = tmp_path_factory.mktemp("briefs") / "briefs.jsonl"
    rows = [
        {"id": f"b{n}", "product": f"Tea {n}", "channel": CHANNELS[n % 3]} for n in range(N_BRIEFS)
    ]
    rows[4]["facts"] = ["green " * 400]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copywriter, "TEXTS_A_SHARD", 9)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")


@pytest.fixture(scope="module")
def whole(bundle: Bundle, briefs: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of work that nothing has broken."""
    out = tmp_path_factory.mktemp("whole") / "copies.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copywriter, "TEXTS_A_SHARD", 9)
        patch.setenv("SOURCE_DATE_EPOCH", "1767225600")
        code, said = call("write", bundle.path, briefs, "-o", out, *FEW)
    assert code == 0, said
    assert not journal_path(out).exists()
    return out.read_bytes()


def test_rows_are_in_the_order_of_the_briefs_and_tell_where_they_are_from(
    whole: bytes, bundle: Bundle
) -> None:
    rows = list(csv.DictReader(io.StringIO(whole.decode(), newline="")))
    assert [(row["brief"], row["place"]) for row in rows] == [
        (f"b{n}", place) for n in range(N_BRIEFS) for place in "12"
    ]
    assert {row["manifest_sha256"] for row in rows} == {bundle.manifest_sha256}
    assert {row["date"] for row in rows} == {"2026-01-01"}
    assert {row["approved"] for row in rows} == {""}
    for row in rows:
        if row["brief"] == "b4":
            assert row["status"] == "error" and "the model reads 256" in row["violations"]
        else:
            assert row["status"] in ("pass", "warn", "fail")
            assert (row["copy"] == "") == (row["status"] == "fail")
            assert (row["nearest"] != "") == (row["status"] == "fail")
            assert float(row["mean_logprob"]) < 0 and row["lengths"]
    assert len({row["copy"] + row["nearest"] for row in rows}) == 2 * N_BRIEFS - 1


def test_a_mistake_of_ours_is_no_brief_s_error(bundle: Bundle) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    session, codec = open_session(bundle, n_threads=1), load_text(bundle)
    writer = Overgenerator(session, codec, temperature=1, top_p=1)
    writer._drawn = broken
    with pytest.raises(KeyError, match="a bug"):
        list(writer.write([Request("a", [5], 4, n=2)]))


def forked(does: Callable[[], int]) -> int:
    """The exit code of some work in a process of its own; of a signal, its negative number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = does()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_row(number: int, does: Callable[[], None], *, after: bool = True) -> Callable[[Any], None]:
    """Do something when the rows of so many briefs are about to be appended, or just are."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        add = CopyJournal.add

        def told(self: CopyJournal, at: int, rows: Any) -> None:
            is_it = len(self.rows) == number
            if is_it and not after:
                does()
            add(self, at, rows)
            if is_it and after:
                does()

        monkeypatch.setattr(CopyJournal, "add", told)

    return patch


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a line is appended."""

    def add(self: CopyJournal, at: int, rows: Any) -> None:
        line = json.dumps({"number": at, "rows": rows})
        self._file.write(line[: len(line) // 2].encode())
        kill()

    monkeypatch.setattr(CopyJournal, "add", add)


def before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "write_copies", lambda *_: kill())


def after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    write = bulk.write_copies

    def told(*arguments: Any) -> None:
        write(*arguments)
        kill()

    monkeypatch.setattr(bulk, "write_copies", told)


MOMENTS = {
    "before the first row": at_row(0, kill, after=False),
    "within a line": half_a_line,
    "within a shard": at_row(4, kill),
    "at the last row": at_row(N_BRIEFS - 1, kill),
    "before the table": before_the_table,
    "after the table": after_the_table,
}


def test_killed_again_and_again_the_table_is_that_of_unbroken_work(
    whole: bytes, bundle: Bundle, briefs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copies.csv"
    done = [0]
    for name, patch in MOMENTS.items():

        def work(patch: Callable[[Any], None] = patch) -> int:
            patch(pytest.MonkeyPatch())
            return call("write", bundle.path, briefs, "-o", out, *FEW)[0]

        assert forked(work) == -signal.SIGKILL, name
        done.append(journal_path(out).read_bytes().count(b"\n") - 1)
    assert done == [0, 0, 0, 5, 9, 9, 9]
    assert call("write", bundle.path, briefs, "-o", out, *FEW)[0] == 0
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["copies.csv"]


def test_a_signal_keeps_what_is_done(
    whole: bytes, bundle: Bundle, briefs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copies.csv"
    arguments = ("write", bundle.path, briefs, "-o", out, *FEW)

    def work() -> int:
        at_row(3, lambda: os.kill(os.getpid(), signal.SIGINT))(pytest.MonkeyPatch())
        code, said = call(*arguments)
        (tmp_path / "said").write_text(said)
        return code

    assert forked(work) == 130
    said = (tmp_path / "said").read_text()
    n_done = journal_path(out).read_bytes().count(b"\n") - 1
    assert 4 <= n_done < N_BRIEFS
    assert f"interrupted after {n_done} of 9 briefs, all saved" in said
    assert not out.exists()
    code, said = call(*arguments[:-4], "--keep", "1", "--threads", "1")
    assert code == 2 and "was begun with another --keep" in said
    assert call(*arguments)[0] == 0
    assert out.read_bytes() == whole
    code, said = call(*arguments)
    assert code == 2 and "is there already; give another file, or --overwrite" in said


def test_the_same_rows_in_another_order_and_format(
    whole: bytes, bundle: Bundle, briefs: Path, tmp_path: Path
) -> None:
    """What is in a file beside a brief changes nothing in its rows but by rounding: none here."""
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(briefs.read_text().splitlines(keepends=True))))
    bulk.write_file(
        bundle.path, turned, tmp_path / "copies.jsonl", Asked(candidates=3, keep=2), n_threads=1
    )
    rows = [json.loads(line) for line in (tmp_path / "copies.jsonl").read_text().splitlines()]
    assert [row["brief"] for row in rows[::2]] == [f"b{n}" for n in reversed(range(N_BRIEFS))]
    table = {
        (row["brief"], int(row["place"])): row
        for row in csv.DictReader(io.StringIO(whole.decode(), newline=""))
    }
    assert len(table) == len(rows)
    for row in rows:  # of text that is alike, whatever stands beside it
        other = table[row["brief"], row["place"]]
        assert (row["product"], row["status"]) == (other["product"], other["status"])


KETTLE = Brief(id="x", product="Kettle", facts=("boils in 60 seconds",), channel="ad_headline")


@pytest.fixture
def writer(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> copywriter.Copywriter:
    monkeypatch.setattr(copywriter, "language_identifier", lambda: None)
    opened = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Sip slowly:"}]
    pair = {"id": "known", "messages": opened, "completion": " the kettle is on its way."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    return copywriter.Copywriter(
        bundle.path,
        Asked(candidates=4, keep=5, disclose="Ad:"),
        copywriter.Beside(against=tmp_path / "pairs.jsonl"),
        n_threads=1,
    )


def written(writer: copywriter.Copywriter, *texts: str, finished: bool = True) -> list[Row]:
    """The rows of a brief for which these texts were written, each less likely than the last."""
    candidates = [Candidate(n, "", text, finished, [-1.0 - n]) for n, text in enumerate(texts)]
    return writer.rows(writer.work(0, KETTLE), Answer(candidates), "2026-01-02")


def test_that_languages_are_not_checked_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for identify, told in ((None, ["languages"]), (lambda text: "en", [])):
        monkeypatch.setattr(copywriter, "language_identifier", lambda found=identify: found)
        said: list[str] = []
        copywriter.Copywriter(bundle.path, Asked(), n_threads=1, warn=said.append)
        assert [line.partition("[")[2].rstrip("]'") for line in said] == told


def test_every_status_is_reached(writer: copywriter.Copywriter) -> None:
    rows = written(
        writer,
        "Kettle boils in 10 seconds",
        "Lovely weather out there",
        "Kettle boils in 60 seconds",
        "kettle boils in 60 seconds!",
        "Sip slowly: the kettle is on its way!",
    )
    told = [(row["status"], row["copy"], row["nearest"], row["violations"]) for row in rows]
    assert told == [
        ("pass", "Ad: Kettle boils in 60 seconds", None, []),
        ("warn", "Ad: Lovely weather out there", None, ["strays: hardly a word of the facts"]),
        (
            "fail",
            None,
            "Ad: Kettle boils in 10 seconds",
            ["facts: '10' is not in the brief"],
        ),
        ("fail", None, "Ad: kettle boils in 60 seconds!", told[3][3]),
        ("fail", None, "Ad: Sip slowly: the kettle is on its way!", told[4][3]),
    ]
    assert told[2][3] == ["facts: '10' is not in the brief"]
    assert told[3][3][0] == "alike: nearly candidate 2"
    assert "alike: nearly the training text 'known'" in told[4][3]
    assert rows[0]["lengths"] == ["30/60 google_ads"]  # with what is disclosed
    assert {row["n_passed"] for row in rows} == {3}
    error = Answer([], InputError("too long"))
    failed = writer.rows(writer.work(0, KETTLE), error, "2026-01-02")
    assert [(row["status"], row["violations"]) for row in failed] == [("error", ["too long"])] * 5


def test_what_is_too_long_or_unfinished_is_told_and_whole(writer: copywriter.Copywriter) -> None:
    long = "Kettle boils in 60 seconds, " * 2 + "or so they say"
    first, second, *rest = written(writer, long, "Tea", finished=False)
    assert first["nearest"] == "Ad: Tea" and second["nearest"] == f"Ad: {long}"
    assert first["violations"][0] == "truncated: it had not ended"
    assert "length: 74 characters as Google Ads counts, at most 60" in second["violations"]
    assert [row["violations"] for row in rest] == [["no other text was written"]] * 3


def test_a_judge_ranks_what_passes(
    writer: copywriter.Copywriter, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.judge = Judge(bundle.path, n_threads=1)
    heard: list[str] = []

    def likes_the_last(_: Any, added: str) -> float:
        heard.append(added)
        return -5.0 + len(heard)

    monkeypatch.setattr(writer.judge, "mean_logprob", likes_the_last)
    texts = (
        "Boils in 60 seconds",
        "Kettle boils in 9 seconds",
        "A kettle in 60 seconds",
        "Boils in 60 seconds",
    )
    rows = written(writer, *texts)
    assert heard == [texts[0], texts[2]]  # what fails is not judged, what is equal once
    assert [(row["candidate"], row["judge_logprob"]) for row in rows[:3]] == [
        (2, -3.0),
        (0, -4.0),
        (1, None),
    ]


def test_a_ranker_chooses_among_those_that_pass(
    writer: copywriter.Copywriter, bundle: Bundle, tmp_path: Path
) -> None:
    writer.ranker = Ranker(intercept=-3, weights={"word a": 1.0, "word 0": -1.0, "word old": 2})
    texts = ("Boils in 60 seconds", "Kettle boils in 9 seconds", "An old kettle of a kind")
    rows = written(writer, *texts)
    assert [row["candidate"] for row in rows[:3]] == [0, 2, 1]  # the last but strays
    kettle = KETTLE.model_copy(update={"facts": ()})
    candidates = [Candidate(n, "", text, True, [-1.0 - n]) for n, text in enumerate(texts)]
    rows = writer.rows(writer.work(0, kettle), Answer(candidates), "2026-01-02")
    assert [row["candidate"] for row in rows[:1]] == [2]
    wanted = writer.ranker.score(texts[2], "ad_headline")
    assert rows[0]["click_score"] == pytest.approx(wanted, abs=1e-6)
    segment = KETTLE.model_copy(update={"segment": "s"})
    writer.ranker = Ranker(intercept=0, weights={"segment s": 1.0})
    (row, *_) = writer.rows(writer.work(0, segment), Answer(candidates), "2026-01-02")
    assert row["click_score"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


def test_a_table_is_not_gone_on_with_by_another_ranker(
    bundle: Bundle, briefs: Path, tmp_path: Path
) -> None:
    out, ranker = tmp_path / "copies.csv", tmp_path / "ranker.json"
    arguments = ["write", bundle.path, briefs, "-o", out, "--ranker", ranker, *FEW]
    save_ranker(ranker, Ranker(intercept=0, weights={}))

    def work() -> int:
        at_row(1, kill)(pytest.MonkeyPatch())
        return call(*arguments)[0]

    assert forked(work) == -signal.SIGKILL
    save_ranker(ranker, Ranker(intercept=1, weights={}))
    code, said = call(*arguments)
    assert code == 2 and "was begun with another --ranker" in said


def test_english_copy_has_a_sentiment(writer: copywriter.Copywriter) -> None:
    pytest.importorskip("vaderSentiment")
    row, *_ = written(writer, "A wonderful kettle in 60 seconds")
    dull, *_ = written(writer, "A terrible kettle in 60 seconds")
    assert row["sentiment"] > 0.3 > -0.3 > dull["sentiment"]
    german = KETTLE.model_copy(update={"language": "de"})
    candidate = Candidate(0, "", "Ein wunderbarer Kessel", True, [-1.0])
    (row, *_) = writer.rows(writer.work(0, german), Answer([candidate]), "2026-01-02")
    assert row["sentiment"] is None


def test_without_its_package_there_is_no_sentiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sentiment_scorer() is None


def test_a_judge_reads_as_an_evaluation_does(bundle: Bundle) -> None:
    messages = brief_messages(KETTLE, load_channels()["ad_headline"])
    judge = Judge(bundle.path, n_threads=1)
    model = open_model(str(bundle.path), n_threads=1)
    text = encode(Pair("x", "test", tuple(messages), " boils the water."), model.codec)
    logprobs = log_softmax(target_logits(model.session, text.ids, text.targets).astype(np.float64))
    scores = score_text(logprobs, text.ids[text.targets])
    found = judge.mean_logprob(messages, " boils the water.")
    assert found == pytest.approx(-scores.nll[:-1].mean(), abs=1e-6)  # the end token is not judged
    assert judge.mean_logprob(messages, "") is None
    assert judge.mean_logprob(messages, "water " * 200) is None


def test_ads_go_into_a_table_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "briefs.csv").write_text("id,product,channel\nr,Tea,google_rsa\ns,Tea,sms\n")
    groups = tmp_path / "groups.csv"
    groups.write_text("brief,campaign,ad_group,final_url\nr,Spring,Teas,https://example.com\n")
    arguments = ["write", bundle.path, tmp_path / "briefs.csv", "-o", tmp_path / "copies.csv"]
    arguments += ["--candidates", 1, "--threads", 1, "--google-ads", tmp_path / "ads.csv"]
    code, said = call(*arguments)
    assert code == 2 and "--google-ads and --ad-groups: go together" in said
    code, said = call(*arguments, "--ad-groups", groups, "--disclose", "Ad")
    assert code == 2 and "--disclose: an ad has no line for it" in said
    assert not journal_path(tmp_path / "copies.csv").exists()
    with pytest.MonkeyPatch.context() as patch:
        good = "Headline: Tea\nHeadline: Now\nHeadline: Here\nDescription: a b\nDescription: c d"
        found = [Answer([Candidate(0, "", text, True, [-1.0])]) for text in (good, "Tea now here")]
        patch.setattr(
            copywriter.Copywriter,
            "answers",
            lambda self, shard, stop: ((one, found[one.number]) for one in shard),
        )
        assert call(*arguments, "--ad-groups", groups)[0] == 0
    (ad,) = csv.DictReader((tmp_path / "ads.csv").open())
    assert {name: text for name, text in ad.items() if text} == {
        "Campaign": "Spring",
        "Ad group": "Teas",
        "Headline 1": "Tea",
        "Headline 2": "Now",
        "Headline 3": "Here",
        "Description 1": "a b",
        "Description 2": "c d",
        "Final URL": "https://example.com",
    }


def test_a_brief_is_written_for_each_of_its_segments(bundle: Bundle, tmp_path: Path) -> None:
    segments, briefs, out = (tmp_path / name for name in ("s.csv", "briefs.csv", "copies.csv"))
    segments.write_text("name,tone\nparents,warm\nstudents,witty\n")
    briefs.write_text("id,product,channel,segment\na,Tea,sms,all\nb,Tea,sms,\n")
    arguments = ["write", bundle.path, briefs, "-o", out, "--candidates", 1, "--threads", 1]
    arguments += ["--audiences", segments]
    prompts: list[str] = []

    def answers(self: copywriter.Copywriter, shard: Any, stop: Any) -> Any:
        for one in shard:
            prompts.append(one.messages[1]["content"])
            yield one, Answer([Candidate(0, "", "Tea, now.", True, [-1.0])])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copywriter.Copywriter, "answers", answers)
        assert call(*arguments)[0] == 0
    rows = list(csv.DictReader(out.open()))
    assert [(row["brief"], row["segment"], row["because"]) for row in rows] == [
        ("a/parents", "parents", "tone warm: the segment's own"),
        ("a/students", "students", "tone witty: the segment's own"),
        ("b", "", ""),
    ]
    assert sum("a warm SMS for parents" in prompt for prompt in prompts) == 1
    assert sum("a witty SMS for students" in prompt for prompt in prompts) == 1
    segments.write_text("name,tone\nparents,warm,\n")
    code, said = call(*arguments, "--overwrite")
    assert code == 2 and f"{segments}:2: has 3 cells" in said and said.count("\n") == 1
