import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.quantize import quantize_bundle
from tests.calling import call
from tests.models import make_llama

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run",
    "distill",
    "finetune",
    "sweep",
    "import-targets",
    "export",
    "serve",
    "briefs",
    "bench",
    "choose",
    "generate",
    "inspect",
    "verify",
    "doctor",
    "eval",
    "write",
    "content",
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    bundle = export_bundle(make_llama(folder / "model"), folder / "tiny", name="tiny")
    quantize_bundle(bundle, "int8", folder / "tiny-int8")
    (folder / "file").write_text("x")
    brief = {"id": "endless", "product": "Tea", "facts": ["green " * 400]}
    (folder / "long.jsonl").write_text(json.dumps(brief))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) >= 5
    assert command in CliRunner().invoke(cli, ["--help"]).output


def test_commands_and_options_of_the_documents_exist() -> None:
    """Every `kdexport X --y` that README and docs show is a command with that option."""
    found = 0
    for document in DOCUMENTS:
        text = document.read_text("utf-8").replace("`\n", "` ")
        for command, rest in re.findall(r"kdexport (\w+)((?: [^\s`#|]+)*)", text):
            if command not in cli.commands:
                assert command not in ("runs", "exports"), document
                continue
            found += 1
            asked, (first, *_) = cli.commands[command], [*rest.split(), ""]
            if isinstance(asked, click.Group):
                asked = asked.commands.get(first, asked)
            known = {o for p in asked.params for o in p.opts} | {"--help"}
            options = [word for word in rest.split() if re.fullmatch(r"--?[a-z][a-z-]*", word)]
            assert set(options) <= known, f"{document.name}: kdexport {command}{rest}"
    assert found >= 12
    assert set(COMMANDS) == set(cli.commands)


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [command for command in COMMANDS if f"kdexport {command}" not in text] == []


def test_every_field_of_a_recipe_is_in_its_guide() -> None:
    from kdexport.recipe import recipe_json_schema

    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    schema = recipe_json_schema()
    fields = {name for part in schema["$defs"].values() for name in part["properties"]}
    assert [name for name in sorted(fields) if not re.search(rf"`(\w+\.)?{name}`", text)] == [
        "generate"  # its fields stand there
    ]


@pytest.mark.parametrize("document", ["README.md", "exported/README.md"])
def test_the_python_of_the_documents_runs(folder: Path, document: str) -> None:
    """The embedding examples, with another bundle in its place."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text("utf-8"), re.S)
    code, n_bundles = re.subn(r'"exported/[A-Za-z-]+-int8"', repr(str(folder / "tiny-int8")), block)
    assert n_bundles == 1
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_written(shell: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from kdexport.commands.main import main; main()"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "_KDEXPORT_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0
    assert "_KDEXPORT_COMPLETE" in ran.stdout


def test_inspect_and_verify(folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["inspect", str(folder / "tiny-int8")]).output
    for part in ("tiny", "int8", "made from", "onnx/model.onnx_data", "layers"):
        assert part in shown
    whole = CliRunner().invoke(cli, ["verify", str(folder / "tiny-int8"), "--json"])
    assert json.loads(whole.output) == {
        "bundle": str(folder / "tiny-int8"),
        "whole": True,
        "problems": [],
    }


def test_the_doctor_knows_this_machine() -> None:
    found = json.loads(CliRunner().invoke(cli, ["doctor", "--json", "--no-probes"]).output)
    assert set(found) == {"machine", "n_threads", "parts"}
    assert found["machine"]["n_cores"] >= found["n_threads"] >= 1
    assert all(all(part.values()) for part in found["parts"].values())
    shown = CliRunner().invoke(cli, ["doctor", "--no-probes"]).output
    assert "ready" in shown
    assert "recommended" not in shown


def test_the_doctor_recommends_a_scheme_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is made up; tests/runtime/test_probes.py has the real one."""
    from kdexport.runtime.advice import Probe, Probes, Speed, recommend

    times = {"one_row_ms": 1, "one_row_gb_s": 20, "many_rows_ms": 9, "many_rows_gflops": 3}
    made_up = Probes(
        n_threads=3,
        seconds=1.5,
        probes=[
            Probe(name="dynamic-unsigned: error", value=0, unit="share", verdict="ok", why="[b]"),
            Probe(name="block8: error", value=None, unit="share", verdict="wrong", why="gone"),
        ],
        speeds=[Speed(kernel="dynamic-unsigned", **times)],
    )
    made_up = made_up.model_copy(update={"recommended": recommend(made_up)})
    monkeypatch.setattr("kdexport.runtime.probes.probe_machine", lambda: made_up)
    found = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).output)["probes"]
    assert Probes.model_validate(found) == made_up
    shown = CliRunner().invoke(cli, ["doctor"]).output
    for part in ("--scheme int8-portable", "signed 8-bit products are wrong", "wrong  gone", "[b]"):
        assert part in shown
    assert "3 threads" in shown


def test_generate_reads_a_prompt_from_stdin(folder: Path) -> None:
    options = ["generate", str(folder / "tiny"), "-n", "4", "--json", "--prompt"]
    piped = CliRunner().invoke(cli, [*options, "-"], input="Bread")
    given = CliRunner().invoke(cli, [*options, "Bread"])
    assert json.loads(piped.output)["text"] == json.loads(given.output)["text"]


def test_a_prompt_on_stdin_that_is_no_utf8_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xff"), encoding="utf-8"))
    code, said = call("generate", folder / "tiny", "-p", "-")
    assert (code, said) == (2, "kdexport: stdin: is not UTF-8\n")


def test_verify_finds_a_changed_manifest(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "tiny", tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"max_length": 256', '"max_length": 999'))
    shown = CliRunner().invoke(cli, ["verify", str(tmp_path / "b")])
    assert (shown.exit_code, shown.output) == (
        1,
        "manifest.json has changed: its sha256 differs\n",
    )
    assert call("generate", tmp_path / "b", "-p", "x")[0] == 2


def test_the_seed_decides_what_is_sampled(folder: Path) -> None:
    def text(seed: int) -> str:
        options = ["-p", "Bread", "-n", "12", "-t", "1.0", "--seed", str(seed), "--json"]
        out = CliRunner().invoke(cli, ["generate", str(folder / "tiny"), *options]).output
        return str(json.loads(out)["text"])

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def written(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of `kdexport generate --json`."""
    arguments = ["generate", str(folder / "tiny"), "-p", "Bread", "-n", "10", "--json", *options]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    return [json.loads(line) for line in shown.output.splitlines()]


def test_each_variant_is_a_line_of_its_own(folder: Path) -> None:
    rows = written(folder, "-t", "1", "--seed", "4", "--variants", "3")
    assert [row["variant"] for row in rows] == [0, 1, 2]
    assert len({row["text"] for row in rows}) == 3
    assert rows[0]["text"] == written(folder, "-t", "1", "--seed", "4")[0]["text"]
    options = ["-p", "Bread", "-n", "10", "-t", "1", "--seed", "4", "--variants", "3"]
    shown = CliRunner().invoke(cli, ["generate", str(folder / "tiny"), *options]).output
    assert shown == "".join(f"{row['variant'] + 1}. {row['text']}\n" for row in rows)


def test_variants_of_a_brief_name_it(folder: Path) -> None:
    arguments = ["--brief", str(ROOT / "recipes/data/example-brief.jsonl"), "--variants", "2"]
    shown = CliRunner().invoke(cli, ["generate", str(folder / "tiny"), *arguments, "--json"])
    rows = [json.loads(line) for line in shown.output.splitlines()]
    assert [(row["id"], row["variant"]) for row in rows[:4]] == [
        ("line-1", 0),
        ("line-1", 1),
        ("line-2", 0),
        ("line-2", 1),
    ]
    assert all("\n" not in row["text"] for row in rows[:2])


def test_a_brief_brings_its_channel_brand_variants_and_seed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text("label: billboard\nmax_new_tokens: 6\n")
    (tmp_path / "brand").write_text("name: Tern\ndisclosures: [Ad]\n")
    wishes = {"product": "Tern", "channel": "board", "variants": 2, "seed": 3}
    (tmp_path / "briefs.jsonl").write_text(json.dumps(wishes))
    arguments = ["generate", str(folder / "tiny"), "--brief", str(tmp_path / "briefs.jsonl")]
    arguments += ["--channels", str(tmp_path), "--brand", str(tmp_path / "brand"), "-t", "1"]
    shown = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).output
    rows = [json.loads(line) for line in shown.splitlines()]
    assert [row["variant"] for row in rows] == [0, 1]
    assert all(row["n_tokens"] <= 6 for row in rows)
    assert [row["review"]["findings"][0]["message"] for row in rows] == ["'Ad' is missing"] * 2
    assert CliRunner().invoke(cli, arguments).output.startswith("[line-1] Tern, billboard:\n1. ")


def test_log_probabilities_are_listed_when_asked_for(folder: Path) -> None:
    [plain], [asked] = written(folder), written(folder, "--logprobs", "2")
    assert "logprobs" not in plain
    assert asked["text"] == plain["text"]
    assert len(asked["logprobs"]) == asked["n_tokens"] == 10
    for token in asked["logprobs"]:
        assert [token["id"], token["logprob"]] == [token["top"][0][k] for k in ("id", "logprob")]
        assert token["logprob"] > token["top"][1]["logprob"]
    mean = sum(token["logprob"] for token in asked["logprobs"]) / 10
    assert asked["mean_logprob"] == plain["mean_logprob"] == pytest.approx(mean)
    [chosen] = written(folder, "--logprobs", "0")
    assert [token["top"] for token in chosen["logprobs"]] == [[]] * 10


def test_beams_find_a_likelier_text_than_greedy(folder: Path) -> None:
    [greedy] = written(folder)
    beams = written(folder, "--beams", "4", "--variants", "2")
    assert beams[0]["mean_logprob"] > beams[1]["mean_logprob"] > greedy["mean_logprob"]
    assert [row["variant"] for row in beams] == [0, 1]


def test_what_a_text_may_hold_is_an_option(folder: Path) -> None:
    [free] = written(folder, "--logprobs", "0")
    first = free["logprobs"][0]["id"]
    [other] = written(folder, "--logprobs", "0", "--logit-bias", f"{first}=-100")
    assert first not in [token["id"] for token in other["logprobs"]]
    stop = free["text"][2:4]
    [stopped] = written(folder, "--stop", "not there", "--stop", stop)
    assert stopped["text"] == free["text"][: free["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"
    for option in ("--frequency-penalty", "--presence-penalty"):
        [more] = written(folder, "--logprobs", "0", option, "2", "--repetition-penalty", "3")
        assert len({token["id"] for token in more["logprobs"]}) == 10
    [single] = written(folder, "-t", "5", "--min-p", "1")
    assert single["text"] == free["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "no such file"),
        (["generate", "none", "-p", "x"], "none"),
        (["generate", "{folder}/tiny"], "either --prompt or --brief"),
        (["generate", "{folder}/tiny", "--brief", "none.jsonl"], "no such file"),
        (["generate", "{folder}/tiny", "-p", "x", "-t", "-1"], "range"),
        (["generate", "{folder}/tiny", "--promt", "x"], "--prompt"),
        (["inspect", "{folder}"], "manifest"),
        (["bench", "{folder}/model"], "manifest"),
        (["export", "{folder}/none"], "no such folder"),
        (["export", "{folder}/tiny"], "is a bundle; a model in safetensors is wanted"),
        (["export", "{folder}/model", "--quantize", "--scheme", "int3"], "unknown scheme"),
        (["export", "{folder}/model", "-o", "{folder}/file"], "is no folder"),
        (["export", "{folder}/model", "-o", "."], "name another folder"),
        (["export", "{folder}/model", "-o", "/"], "name another folder"),
        (["export", "{folder}/model", "-o", "{folder}/model"], "other things in it"),
        (["bench", "{folder}/tiny", "--out", "{folder}/file"], "cannot be made a folder"),
        (["bench", "{folder}/tiny", "--prompt", "256"], "beyond the model's 256"),
        (["generate", "{folder}/tiny", "-p", "caf\udcff"], "not valid Unicode"),
        (["generate", "{folder}/tiny", "--raw", "-p", "caf\udcff"], "not valid Unicode"),
        *(
            (["generate", "{folder}/tiny", "-p", "x", option, value], "finite")
            for option in ("-t", "--top-p", "--repetition-penalty")
            for value in ("nan",)
        ),
        (["generate", "{folder}/tiny", "-p", "x", "-t", "inf"], "finite"),
        *(
            (["generate", "{folder}/tiny", "-p", "x", *more], message)
            for more, message in (
                (["--min-p", "2"], "--min-p"),
                (["--frequency-penalty", "3"], "--frequency-penalty"),
                (["--presence-penalty", "nan"], "finite"),
                (["--no-repeat-ngram", "-1"], "--no-repeat-ngram"),
                (["--logit-bias", "5:1"], "--logit-bias: '5:1' is no ID=VALUE"),
                (["--logit-bias", "5=nan"], "logit_bias: nan for token 5"),
                (["--logit-bias", "999=1"], "token 999 is not of the model's vocabulary"),
                (["--stop", ""], "an empty stop string"),
                (["-n", "8", "--min-new-tokens", "9"], "--min-new-tokens: is more than"),
                (["--beams", "3", "-t", "0.5"], "--beams: draws no tokens; leave out"),
                (["--beams", "3", "--variants", "4"], "--variants: cannot be more than --beams"),
                (["--logprobs", "2"], "--logprobs: is of --json"),
                (["--logprobs", "2", "--json", "--beams", "2"], "--logprobs: is not of a beam"),
            )
        ),
        (["generate", "{folder}/tiny", "-p", ""], "the prompt is empty"),
        (["generate", "{folder}/tiny", "-p", " \n"], "the prompt is empty"),
        (["generate", "{folder}/tiny", "--raw", "--brief", "none.jsonl"], "--raw"),
        (["generate", "{folder}/tiny", "-p", "x", "--brand", "x"], "--brand: is of --brief"),
        (["generate", "{folder}/tiny", "--brief", "{folder}/long.jsonl"], "long.jsonl: endless"),
        (["export", "{folder}/model", "--scheme", "int8"], "--scheme: is of --quantize"),
        (["export", "{folder}/model", "--max-kl", "0.1"], "--max-kl: is of --quantize"),
        (["export", "{folder}/model", "--kv-cache", "int8"], "--kv-cache: is of --quantize"),
        (["export", "{folder}/model", "--quantize", "--calibrate", "none.txt"], "no such file"),
        *(
            ([command, "n" * 300, *more], "File name too long")
            for command, *more in (["generate", "-p", "x"], ["inspect"], ["verify"], ["bench"])
        ),
        (["export", "{folder}/model", "-o", "n" * 300], "File name too long"),
        (["export", "{folder}/model", "-o", "{folder}/file/x"], "cannot be made a folder"),
        (["inspect", "{folder}/file/x"], "no such bundle"),
        (["inspect", "[/x]"], "[/x]: there is no such bundle"),
        (["-v", "inspect", "none"], "no such bundle"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, arguments: list[str], message: str
) -> None:
    before = sorted(folder.iterdir())
    code, said = call(*(a.format(folder=folder) for a in arguments))
    assert code == 2, said
    assert message in said
    assert ("Traceback" in said) == ("-v" in arguments)
    assert sorted(folder.iterdir()) == before


def test_a_bundle_of_a_newer_format_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    newer = tmp_path / "newer"
    shutil.copytree(folder / "tiny", newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    for command in (["generate", newer, "-p", "x"], ["inspect", newer]):
        code, said = call(*command)
        assert code == 2
        assert "99" in said
        assert "upgrade" in said


def in_shell(command: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of bash in which `kdexport` is ours."""
    ours = f"{sys.executable} -c 'from kdexport.commands.main import main; main()'"
    ran = subprocess.run(
        ["bash", "-c", command.replace("kdexport", ours, 1)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_a_pipe_that_closes_is_no_error(folder: Path) -> None:
    command = f"kdexport generate {folder}/tiny -p Bread -n 60 | true; exit ${{PIPESTATUS[0]}}"
    assert in_shell(command) == (0, "", "")


@pytest.mark.parametrize("command", ["inspect {}", "inspect {} --json", "generate {} -p x -n 3"])
def test_a_full_disk_under_stdout_is_one_line(folder: Path, command: str) -> None:
    call_it = "kdexport " + command.format(folder / "tiny") + " > /dev/full"
    said = "kdexport: the disk is full; make room and run the same command again\n"
    assert in_shell(call_it) == (2, "", said)


def test_streams_that_take_little(folder: Path) -> None:
    code, out, said = in_shell(f"kdexport inspect {folder}/tiny", PYTHONIOENCODING="ascii")
    assert (code, said) == (0, "")
    assert "\\u2026" in out  # the … after a hash
    assert in_shell("kdexport inspect none 2>&-")[0] == 2
    assert in_shell(f"kdexport verify {folder}/tiny >&-") == (0, "", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "no", "a/b"), "a/b: the disk is full"),
        (OSError(errno.EFBIG, "no"), "the disk is full"),
        (RuntimeError("Error while serializing: I/O error: (os error 28)"), "the disk is full"),
        (OSError("4096 requested and 12 written"), "the disk is full"),
        (OSError("problem writing element 2048 to file"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied"),
        (InputError("one\n\ntwo"), "one  two"),
        (ValueError("a mistake of ours"), None),
    ],
)
def test_what_the_system_refuses_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str | None
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("kdexport.bundle.verify_bundle", fails)
    if line is None:
        with pytest.raises(ValueError, match="of ours"):
            call("verify", folder / "tiny")
        return
    code, said = call("verify", folder / "tiny")
    assert code == 2
    assert said.startswith(f"kdexport: {line}")
    assert said.count("\n") == 1


def test_a_name_is_no_markup(folder: Path, tmp_path: Path) -> None:
    bundle = export_bundle(folder / "model", tmp_path / "[red]" / "[", name="[/x] [bold]y")
    shown = CliRunner().invoke(cli, ["inspect", str(bundle.path)], terminal_width=400)
    assert shown.exit_code == 0, shown.exception
    assert "[/x] [bold]y" in shown.output
    assert "[red]" in shown.output


def test_export_prints_the_ledger_of_a_mix(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "mix")
    asked = ["export", str(folder / "model"), "-o", out, "--quantize", "--max-kl", "0.5"]
    shown = CliRunner().invoke(cli, asked)
    assert shown.exit_code == 0, shown.output
    assert "KL, nats" in shown.stdout and "logits" in shown.stdout and "sum" in shown.stdout
    assert (tmp_path / "mix-int8" / "ledger.json").is_file()
