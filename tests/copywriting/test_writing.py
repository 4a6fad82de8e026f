"""A kept prompt and a draft change no text that `kdexport generate` writes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdexport.bundle import Bundle
from kdexport.commands.main import cli
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.quantize import quantize_bundle
from tests.models import make_llama

PROMPT = "Fresh bread from our oven, 20% off this spring! Book your weekend today."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("writing")
    return export_bundle(make_llama(folder / "model"), folder / "bundle", name="tiny")


def written(bundle: Bundle, *options: Any) -> dict[str, Any]:
    arguments = ["generate", str(bundle.path), "-p", PROMPT, "-n", "12", "--json"]
    shown = CliRunner().invoke(cli, [*arguments, *map(str, options)], catch_exceptions=False)
    assert shown.exit_code == 0 and not shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


@pytest.mark.parametrize("options", [[], ["-t", "0.9", "--seed", "3"]])
def test_a_draft_and_a_kept_prompt_change_no_text(
    bundle: Bundle, options: list[str], tmp_path: Path
) -> None:
    alone = written(bundle, *options)
    first = written(bundle, *options, "--draft", bundle.path, "--prompt-cache", tmp_path)
    second = written(bundle, *options, "--draft", bundle.path, "--prompt-cache", tmp_path)
    assert first["text"] == second["text"] == alone["text"]
    assert first["mean_logprob"] == pytest.approx(alone["mean_logprob"], abs=1e-4)
    n_computed = first["prompt_tokens"]["computed"]
    assert n_computed > 0
    assert second["prompt_tokens"] == {"from_memory": 0, "from_disk": n_computed, "computed": 0}
    draft = first["draft"]
    assert draft["n_calls"] + draft["n_accepted"] == first["n_tokens"] - 1
    assert "draft" not in alone and "prompt_tokens" not in alone


@pytest.mark.parametrize("options", [[], ["-t", "0.9", "--seed", "3"]])
def test_with_a_draft_the_text_is_that_of_exact_to_the_bit(
    bundle: Bundle, options: list[str], tmp_path: Path
) -> None:
    teacher = quantize_bundle(bundle, "int8", tmp_path / "int8")
    alone = written(teacher, *options, "--exact", "--logprobs", 2)
    drafted = written(teacher, *options, "--draft", bundle.path, "--logprobs", 2)
    assert drafted["logprobs"] == alone["logprobs"] and len(alone["logprobs"]) > 1


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--regex", "[a-z]{3,6} [0-9]"], "[a-z]{3,6} [0-9]"),
        (["--choice", "warm tea", "--choice", "dry"], "warm tea|dry"),
        (["--schema", "{}"], r'\{"n": [12]\}'),
    ],
)
def test_texts_keep_to_a_form(
    bundle: Bundle, options: list[str], pattern: str, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]'
        ', "additionalProperties": false}'
    )
    options = [one.format(schema) if one == "{}" else one for one in options]
    arguments = ["generate", str(bundle.path), "-p", PROMPT, "-n", "60", "-t", "1", *options]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert re.fullmatch(pattern, shown.stdout.removesuffix("\n")), shown.stdout
    several = CliRunner().invoke(cli, [*arguments, "--variants", "4", "--json"])
    texts = [json.loads(line) for line in several.stdout.splitlines()]
    assert len(texts) == 4
    for one in texts:
        assert re.fullmatch(pattern, one["text"]) and one["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["--regex", "a", "--choice", "b"], "--regex and --choice"),
        (["--regex", "[a-"], "--regex"),
        (["--choice", ""], "--choice"),
        (["--regex", "a", "--beams", "2"], "--beams"),
        (["--regex", "a", "--min-new-tokens", "2"], "--min-new-tokens"),
        (["--regex", "a", "--draft", "{}"], "--draft"),
        (["--schema", "no.json"], "no.json"),
        (["--draft", "{}", "--variants", "2"], "--draft"),
        (["--draft", "{}", "--beams", "2"], "--draft"),
        (["--prompt-cache", "kept", "--beams", "2"], "--prompt-cache"),
        (["--draft", "none"], "none"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    bundle: Bundle, options: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(
            cli,
            ["generate", str(bundle.path), "-p", "x"]
            + [one.format(bundle.path) for one in options],
            catch_exceptions=False,
        )
    assert where in caught.value.where
    assert not list(tmp_path.iterdir())


def test_a_teacher_whose_logits_hang_on_grouping_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdexport.copywriting.writing.grouping_error", lambda session, ids: 0.5)
    arguments = ["generate", str(bundle.path), "-p", "x", "-n", "3", "--draft", str(bundle.path)]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "depend on how many tokens are read at once, by 0.5" in shown.stderr
    assert shown.stderr.count("\n") == 1
