"""The commands that measure and decide, in front of made-up measurements."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kdexport.content.channels import load_channels
from kdexport.measuring import arms
from kdexport.verdict.measures import MEASURES, TIMED
from kdexport.verdict.report import BenchReport, load_report, write_report
from kdexport.verdict.timing import Case
from tests.calling import call
from tests.verdict.fixture import example_report, with_case


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the bench was asked to measure; it finds the example."""
    calls: list[Any] = []

    def found(*arguments: Any) -> BenchReport:
        calls.append(arguments)
        return example_report()

    monkeypatch.setattr(arms, "bench_bundles", found)
    return calls


BENCH = ("bench", "exported/student-int8", "--threads", "2")


def test_a_threshold_that_is_passed_ends_with_1(asked: list[Any], tmp_path: Path) -> None:
    limits = ("--fail-if", "kl_p99>1.0", "--fail-if", "speedup<8", "--fail-if", "size_mb>40")
    code, said = call(*BENCH, *limits, "--out", tmp_path, "--csv", tmp_path / "x.csv")
    assert code == 1
    assert said.splitlines()[-2:] == [
        "kdexport: student-int8: kl_p99 is 2.666 nats (fails if kl_p99>1)",
        "kdexport: student-int8: size_mb is 47.2 MB (fails if size_mb>40)",
    ]
    assert load_report(tmp_path) == example_report()
    assert (tmp_path / "x.csv").exists()


def test_the_results_are_on_stdout_whatever_failed(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    from kdexport.commands.main import cli

    ran = CliRunner().invoke(cli, [*BENCH, "--fail-if", "size_mb>40", "--json"])
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["name"] == example_report().name
    assert "size_mb is 47.2 MB" in ran.stderr


def test_thresholds_that_hold_say_nothing(asked: list[Any]) -> None:
    assert call(*BENCH, "--fail-if", "kl_p99>3", "--fail-if", "speedup<8") == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-if", "kl_p98>1"], "--fail-if: unknown measure 'kl_p98'; did you mean 'kl_p99'?"),
        (["--fail-if", "speedup>8"], "fails what is good"),
        (["--fail-if", "student:kl_p99>8"], "did you mean 'student-int8'?"),
        (["--csv", "none/x.csv"], "none/x.csv: cannot be written"),
        (["--fail-if", "regressions>0"], "unknown measure 'regressions'"),
        (["--compare", "a", "b"], "--compare: reads two reports and takes nothing else"),
        (["--copies", "4"], "--copies: is of --briefs, which is not given"),
        (["--brand", "x.yaml"], "--brand: is of --briefs, which is not given"),
        (["--briefs", "none.jsonl"], "none.jsonl: "),
    ],
)
def test_bad_input_ends_with_2_before_anything_is_measured(
    asked: list[Any], options: list[str], message: str
) -> None:
    code, said = call(*BENCH, *options)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert message in said
    assert asked == []


def test_csv_has_a_row_an_arm_and_every_decimal(asked: list[Any], tmp_path: Path) -> None:
    assert call(*BENCH, "--csv", tmp_path / "x.csv") == (0, "")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    report = example_report()
    assert [row["arm"] for row in rows] == [arm.arm for arm in report.arms]
    for row, arm in zip(rows, report.arms, strict=True):
        assert set(MEASURES) < set(row)
        assert float(row["ttft_p50_ms"]) == arm.ttft_p50_ms
        assert float(row["kl_mean"]) == arm.kl_mean
        assert row["n_threads"] == "2"
    assert rows[0]["speedup"] == ""


def test_csv_has_further_cases_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case(n_threads=1, batch_size=8, prompt_tokens=16, new_tokens=32)
    report = with_case(example_report(), case)
    monkeypatch.setattr(arms, "bench_bundles", lambda *_: report)
    assert call(*BENCH, "--csv", tmp_path / "x.csv") == (0, "")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own, further = rows[: len(report.arms)], rows[len(report.arms) :]
    assert [row["arm"] for row in further] == [row["arm"] for row in own]
    for first, row in zip(own, further, strict=True):
        told = [row[name] for name in ("n_threads", "batch_size", "prompt_tokens", "new_tokens")]
        assert told == ["1", "8", "16", "32"]
        for name in MEASURES:
            assert row[name] == (first[name] if name in TIMED else "")
    assert further[-1]["tpot_p99_ms"] != ""


def test_the_first_of_each_list_is_the_reports_own_case(asked: list[Any]) -> None:
    assert call("bench", "x", "--threads", "2,1", "--batch", "1,4", "--prompt", "16,32,16") == (
        0,
        "",
    )
    settings = asked[0][2]
    cases = [(c.n_threads, c.batch_size, c.prompt_tokens) for c in settings.cases]
    assert cases == [
        *((2, 1, 16), (2, 1, 32), (2, 4, 16), (2, 4, 32)),
        *((1, 1, 16), (1, 1, 32), (1, 4, 16), (1, 4, 32)),
    ]
    assert settings.n_threads == 2 and {c.new_tokens for c in settings.cases} == {64}


def test_a_teacher_has_two_rows_unless_one_is_left_out(asked: list[Any]) -> None:
    limit = ("--fail-if", "teacher-int8:load_s>99")
    assert call(*BENCH, "--teacher", "t", *limit) == (0, "")
    assert call(*BENCH, "--teacher", "t", "--no-teacher-int8") == (0, "")
    assert [(teacher, int8) for _, teacher, _, int8, _ in asked] == [("t", True), ("t", False)]
    code, line = call(*BENCH, "--teacher", "t", "--no-teacher-int8", *limit)
    assert code == 2 and "teacher-int8" in line
    assert len(asked) == 2


def test_briefs_are_asked_for_in_their_channels(asked: list[Any], tmp_path: Path) -> None:
    rows = [{"id": f"b{n}", "product": f"Tea {n}", "channel": "sms"} for n in range(40)]
    path = tmp_path / "briefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(*BENCH, "--briefs", path) == (0, "")
    assert call(*BENCH, "--briefs", path, "--copies", "2") == (0, "")
    assert call(*BENCH) == (0, "")
    many, two, none = (one[-1] for one in asked)
    assert (len(many.pairs), len(none.pairs)) == (16, 0)
    assert [pair.id for pair in two.pairs] == ["b0", "b20"]
    assert two.briefed.channel("b20").max_new_tokens == load_channels()["sms"].max_new_tokens


@pytest.mark.parametrize(
    ("given", "said"), [("0", "0 is below 1"), ("1,", "is not N or N,N"), ("two", "is not N or")]
)
def test_lists_of_no_numbers_are_refused(asked: list[Any], given: str, said: str) -> None:
    code, line = call("bench", "x", "--batch", given)
    assert code == 2 and said in line and not asked


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A report, and one with a student that takes more memory on disk."""
    folder = tmp_path_factory.mktemp("reports")
    old = example_report()
    larger = old.arms[-1].model_copy(update={"size_mb": 60.0})
    new = old.model_copy(update={"arms": [*old.arms[:-1], larger]})
    for name, report in (("old", old), ("new", new)):
        write_report(report, folder / name)
    return folder / "old", folder / "new" / "bench.json"


def test_reports_are_compared(reports: tuple[Path, Path]) -> None:
    from click.testing import CliRunner

    from kdexport.commands.main import cli

    ran = CliRunner().invoke(cli, ["bench", "--compare", *map(str, reports)])
    assert ran.exit_code == 0
    [line] = [line for line in ran.stdout.splitlines() if " size_mb " in line]
    for part in ("student-int8", "47.2", "60", "1.271", "worse"):
        assert part in line
    assert "student-int8: 2 worse, " in ran.stdout
    ran = CliRunner().invoke(cli, ["bench", "--compare", *map(str, reports), "--json"])
    assert json.loads(ran.stdout)["regressions"]["student-int8"] == 2


@pytest.mark.parametrize(
    ("limit", "code", "message"),
    [
        ("regressions>0", 1, "student-int8: regressions is 2 (fails if regressions>0)"),
        ("*:regressions>0", 1, "student-int8: regressions is 2"),
        ("regressions>2", 0, ""),
        ("teacher-int8:regressions>0", 0, ""),
        ("kl_mean>0", 2, "unknown measure 'kl_mean'; known are regressions"),
        ("teacher-int4:regressions>0", 2, "did you mean 'teacher-int8'"),
    ],
)
def test_regressions_may_fail(
    reports: tuple[Path, Path], limit: str, code: int, message: str
) -> None:
    ended, said = call("bench", "--compare", *reports, "--fail-if", limit)
    assert ended == code
    assert message in said


def test_what_is_no_report_is_one_line(reports: tuple[Path, Path]) -> None:
    code, said = call("bench", "--compare", reports[0], "none.json")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "none.json" in said


def test_a_bench_wants_bundles() -> None:
    assert call("bench")[0] == 2


@pytest.mark.parametrize(
    ("limit", "code", "message"),
    [
        ("kl_p99>3", 0, ""),
        ("kl_p99>1", 1, "kdexport: student-int8: kl_p99 is 2.666 nats (fails if kl_p99>1)"),
        ("student-fp32:size_mb>1", 1, "kdexport: student-fp32: size_mb is 187.6 MB"),
    ],
)
@pytest.mark.parametrize("allow", [[], ["--allow"]])
def test_a_run_ends_with_its_recipe_s_thresholds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    code: int,
    message: str,
    allow: list[str],
) -> None:
    """A run that is done already: its bench.json is read, and the recipe of now counts."""
    from kdexport.pipeline import run as pipeline
    from kdexport.sources import ResolvedModel

    (tmp_path / "pairs.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: x\nteacher: t\ndata: {pairs: pairs.jsonl}\ntrain: {max_steps: 1}\n"
        f"bench: {{fail_if: ['{limit}']}}\noutput: {{runs: {tmp_path / 'runs'}}}\n"
    )
    write_report(example_report(), tmp_path / "runs" / "x")
    runs: list[pipeline.Run] = []
    model = ResolvedModel(tmp_path, "t", "print", None)
    monkeypatch.setattr(pipeline, "require_extras", lambda *_: None)
    monkeypatch.setattr(pipeline, "resolve_teacher", lambda *_, **__: model)
    monkeypatch.setattr(pipeline, "run_stages", runs.append)
    ended, said = call("run", tmp_path / "r.yaml", *allow)
    assert ended == code
    assert message in said
    assert [run.allow for run in runs] == [bool(allow)]


def chosen(*arguments: object) -> Any:
    from click.testing import CliRunner

    from kdexport.commands.main import cli

    return CliRunner().invoke(cli, ["choose", *map(str, arguments)])


def test_bundles_are_measured_quickly_and_one_is_chosen(asked: list[Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").write_text("x")
    shell = sorted(tmp_path.iterdir())  # exported/*
    ran = chosen(*shell, "--need", "decode_tok_s>=60", "--smallest", "size_mb", "--threads", "2")
    assert ran.exit_code == 0
    assert "student-int8: of 3 that meet decode_tok_s>=60 it has the smallest size_mb" in ran.stdout
    assert f"left out, being no folder: {tmp_path / 'README.md'}" in ran.stderr
    [(paths, teacher, settings)] = asked
    assert paths == [tmp_path / "a", tmp_path / "b"]
    assert teacher is None
    assert (settings.n_runs, settings.n_threads) == (2, 2)


def test_what_was_measured_is_read(asked: list[Any], reports: tuple[Path, Path]) -> None:
    for path in reports:
        found = json.loads(chosen(path, "--largest", "decode_tok_s", "--json").stdout)
        assert found["pick"] == "student-int8"
        assert found["settings"]["n_threads"] == 2
        assert len(found["candidates"]) == 5
    assert asked == []


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--need", "decode_tok_s>=9999"], 1, "kdexport: nothing meets decode_tok_s>=9999"),
        ([], 0, ""),
        (["--need", "decode_tok_s<60"], 2, "asks for what is bad: more is better"),
        (["--need", "speed>=60"], 2, "unknown measure 'speed'; did you mean 'speedup'?"),
        (["--smallest", "decode_tok_s"], 2, "--smallest: of decode_tok_s, more is better"),
        (["--smallest", "klmean"], 2, "did you mean 'kl_mean'?"),
        (["--smallest", "kl_mean", "--largest", "top1"], 2, "one measure decides"),
        (["--threads", "2"], 2, "is a report: it stands alone"),
    ],
)
def test_what_choose_says(
    reports: tuple[Path, Path], options: list[str], code: int, message: str
) -> None:
    ended, said = call("choose", reports[0], *options)
    assert ended == code
    assert message in said
