"""Each scenario's recipe, from its data to copy, with a tiny teacher in its own's place.

Without the bench at the end of `kdexport run`, whose processes take most of the time:
tests/test_trips.py has it.
"""

import contextlib
import csv
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.content.channels import load_channels
from kdexport.data.pairs import Pair, load_pairs
from kdexport.recipe import load_recipe
from kdexport.train.model import load_tokenizer
from tests.calling import call
from tests.models import CHAT_TEMPLATE, byte_level_bpe, make_family
from tests.scenarios import RECIPES, Chat, chats_of, teacher_of

FEW: Mapping[str, int | None] = {"train": 5, "validation": 2, "test": 2}
CHANNELS: Mapping[str, int | None] = {"train": 11, "validation": 2, "test": 2}  # of a product
LANGUAGES: Mapping[str, int | None] = {"train": 10, "validation": 5, "test": 5}  # of two, one, one
SMALL = [
    "student.n_layers=2",
    "student.intermediate_size=96",
    "train.max_minutes=null",
    "train.max_steps=4",
    "train.evaluate_steps=4",
    "train.n_threads=1",
    "data.generate.temperature=0",
    "data.generate.variants=1",
    "data.generate.best_of=1",
    "data.generate.review=keep",  # the stand-ins say more than a channel has room for
]
THINKING = CHAT_TEMPLATE.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def good(*arguments: object) -> str:
    code, said = call(*arguments)
    assert code == 0, said
    return said


def sets(limits: Mapping[str, int | None], *more: str) -> list[str]:
    most = [f"data.max_{split}={n}" for split, n in limits.items()]
    return [part for one in (*SMALL, *most, *more) for part in ("--set", one)]


def made(name: str, teacher: Path, limits: Mapping[str, int | None], *more: str) -> list[Pair]:
    """The recipe's student, distilled and exported; its pairs."""
    said = good("distill", RECIPES / f"{name}.yaml", *sets(limits, f"teacher={teacher}", *more))
    assert "dropped: none" in said, said
    good("export", f"runs/{name}", "--quantize", "-o", f"exported/{name}")
    return load_pairs(Path("runs") / name / "pairs.jsonl")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenarios")


@pytest.fixture(autouse=True)
def there(folder: Path) -> Any:
    with contextlib.chdir(folder):
        yield


@pytest.fixture(scope="module")
def english(folder: Path) -> Path:
    """In place of SmolLM2; it knows the first briefs of three recipes by heart."""
    chats: list[Chat] = []
    for name, limits in (("personal", FEW), ("campaign", FEW), ("cross-channel", CHANNELS)):
        chats += chats_of(name, limits)
    return teacher_of(folder / "english", "smollm2", chats)


def test_personal(english: Path) -> None:
    pairs = {p.id: p for p in made("personal", english, FEW, "student.vocab_size=600")}
    assert len(pairs) == 9
    asked = pairs["harrow-email_subject/families"].messages[1]["content"]
    assert "for parents of young children (30-39; children, delivery)" in asked
    assert "free returns for 60 days" in pairs["harrow-email_subject/families"].completion
    segments = RECIPES / "data" / "audiences.csv"
    briefs = Path("few.csv")
    lines = (RECIPES / "data" / "personal-briefs.csv").read_text().splitlines(keepends=True)
    briefs.write_text("".join(lines[:2]))
    options = ["--audiences", segments, "--candidates", 2, "--threads", 1]
    good("write", "exported/personal-int8", briefs, "-o", "personal.csv", *options)
    rows = {row["segment"]: row for row in table(Path("personal.csv"))}
    assert list(rows) == ["families", "students", "outdoors", "regulars"]
    assert rows["families"]["because"].startswith("tone playful: opened by 30.0% of 5,200, against")
    assert rows["students"]["because"].startswith("tone witty: the segment's own; no past tone")
    assert rows["outdoors"]["because"].startswith("tone warm: opened by 37.0% of 3,000")
    assert rows["regulars"]["because"] == "tone friendly: the brief's"
    assert all(row["copy"] or row["nearest"] for row in rows.values())


def test_cross_channel(english: Path) -> None:
    channels = {"email_subject", "email_preheader", "push_note", "sms", "x_post"}
    channels |= {"instagram_caption", "meta_title", "meta_description", "ad_headline"}
    channels |= {"ad_description", "product_description"}
    assert channels <= load_channels().keys()
    pairs = made("cross-channel", english, CHANNELS, "student.vocab_size=600")
    card = json.loads(Path("runs/cross-channel/data_card.json").read_text())
    assert card["splits"]["train"]["channels"] == dict.fromkeys(channels, 1)
    told = "boils in two minutes"
    assert all(told in pair.completion for pair in pairs if pair.id.startswith("tern-"))
    briefs, few = RECIPES / "data" / "cross-channel-briefs.csv", Path("cross-channel-few.csv")
    few.write_text("".join(briefs.read_text().splitlines(keepends=True)[:12]))
    options = [str(few), "--candidates", "1", "--threads", "1"]
    good("write", "exported/cross-channel-int8", *options, "-o", "cross-channel.csv")
    rows = table(Path("cross-channel.csv"))
    assert {row["channel"] for row in rows} == channels
    assert all(row["copy"] or row["nearest"] for row in rows)
    arguments = ["content", "eval", "exported/cross-channel-int8", *options, "--json"]
    groups = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)["groups"]
    assert {one["name"] for one in groups if one["by"] == "channel"} == channels


def test_a_campaign_and_a_student_that_goes_on_from_another(english: Path) -> None:
    pairs = made("campaign", english, FEW, "student.vocab_size=600")
    assert all("SUN20" in pair.completion for pair in pairs)
    brand = RECIPES / "data" / "campaign-brand.yaml"
    assert "Voice: plain and cheerful, never loud." in pairs[0].messages[1]["content"]
    briefs = RECIPES / "data" / "campaign-briefs.csv"
    few = Path("campaign-few.csv")
    few.write_text("".join(briefs.read_text().splitlines(keepends=True)[:3]))
    options = ["--brand", brand, "--against", "runs/campaign/pairs.jsonl", "--candidates", 2]
    good("write", "exported/campaign-int8", few, "-o", "campaign.csv", *options, "--threads", 1)
    ids = [row["brief"] for row in table(Path("campaign.csv"))]
    assert ids == ["tern-email_subject", "tern-sms"]
    recipe = RECIPES / "campaign.yaml"
    other = ["student=null", "student.init=checkpoint", "student.from=runs/campaign/student"]
    good("distill", recipe, *sets(FEW, f"teacher={english}", "name=again", *other))
    facts = json.loads(Path("runs/again/student/kdexport.json").read_text())
    before = json.loads(Path("runs/campaign/student/kdexport.json").read_text())
    assert facts["kept_ids"] == before["kept_ids"] and len(facts["kept_ids"]) == 600


def test_multilingual(folder: Path) -> None:
    """Qwen3's family and template: it is asked not to think; no language loses its tokens."""
    recipe = load_recipe(RECIPES / "multilingual.yaml")
    assert recipe.teacher.source.startswith("Qwen/Qwen3-0.6B@")
    assert recipe.data.generate.top_k == 20
    chats = chats_of("multilingual", LANGUAGES)
    teacher = teacher_of(folder / "qwen3", "qwen3", chats, THINKING)
    pairs = made("multilingual", teacher, LANGUAGES, "student.vocab_size=800")
    languages = {"de", "en", "es", "fr", "zh"}
    assert {pair.language for pair in pairs if pair.split == "train"} == languages
    manifest = json.loads(Path("exported/multilingual-int8/manifest.json").read_text())
    assert manifest["model"]["family"] == "qwen3"
    growth = json.loads(Path("runs/multilingual/student/kdexport.json").read_text())["token_growth"]
    assert growth.keys() == languages
    assert max(growth.values()) < 1.3, growth
    student = load_tokenizer(Path("runs/multilingual/student"))
    assert len(student.get_vocab()) == 800
    for pair in pairs:
        ids = student(pair.completion)["input_ids"]
        assert student.decode(ids) == pair.completion
    good(
        *(
            "content",
            "eval",
            "exported/multilingual-int8",
            RECIPES / "data/multilingual-briefs.csv",
        ),
        *("--briefs", 5, "--candidates", 1, "--threads", 1),
    )


def test_a_teacher_and_its_student_learn_again_from_what_was_approved(folder: Path) -> None:
    """The commands at the head of the recipe, two rounds of them."""
    recipe, texts = RECIPES / "teacher-iteration.yaml", RECIPES / "data" / "marketing-pairs.jsonl"
    few: Mapping[str, int | None] = {"train": 16, "validation": 4, "test": 4}
    words = [pair.completion for pair in load_pairs(texts)]
    make_family(folder / "first", "smollm2", tokenizer=byte_level_bpe(900, words))
    learns = ["finetune.lr=3e-3", "finetune.epochs=1", "finetune.evaluate_steps=2"]

    def told(name: str) -> dict[str, float]:
        found = json.loads(Path(f"runs/{name}/teacher/kdexport.json").read_text())
        return {key: found[key] for key in ("perplexity_before", "perplexity")}

    def a_round(number: int, teacher: str, *data: str) -> None:
        own = [f"name=teacher-{number}", f"teacher={teacher}", *learns, *data]
        good("finetune", recipe, *sets(few, *own))
        own = [f"name=round-{number}", f"teacher=runs/teacher-{number}/teacher", *data]
        good("distill", recipe, *sets(few, "student.vocab_size=600", *own))
        good("export", f"runs/round-{number}", "--quantize")

    a_round(1, "first")
    assert told("teacher-1")["perplexity"] < told("teacher-1")["perplexity_before"]
    student = "exported/round-1-int8"
    beside = ["--teacher", "exported/round-1-teacher-int8", "--texts", 4, "--copies", 0]
    good("eval", student, texts, *beside, "--threads", 1)
    briefs = Path("briefs.csv")
    briefs.write_text("id,product,facts,channel\na,Tern Kettle,one litre,ad_headline\n")
    good("write", student, briefs, "-o", "copies.csv", "--candidates", 1, "--threads", 1)
    (row,) = table(Path("copies.csv"))
    with Path("copies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row | {"approved": "yes", "copy": "A litre of tea in two minutes"})
    good("content", "pairs", "copies.csv", briefs, "-o", "approved.jsonl")
    more = Path("texts-2.jsonl")
    more.write_text(Path("approved.jsonl").read_text() + texts.read_text())
    a_round(2, "runs/teacher-1/teacher", f"data.pairs={more}")
    assert load_pairs(Path("runs/round-2/pairs.jsonl"))[0].completion.startswith("A litre of tea")
    assert told("teacher-2")["perplexity"] < told("teacher-1")["perplexity"]


def commands() -> Iterator[list[str]]:
    """What the page and the recipes' heads tell to type."""
    page = (RECIPES.parent / "docs" / "scenarios.md").read_text("utf-8")
    heads = [path.read_text("utf-8") for path in sorted(RECIPES.glob("*.yaml"))]
    for text in (page, *(re.sub(r"^# ?", "", head, flags=re.M) for head in heads)):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip().startswith("kdexport "):
                yield shlex.split(line, comments=True)[1:]


def test_what_is_told_to_type_can_be_typed() -> None:
    found = list(commands())
    assert len(found) > 20
    for words in found:
        command: Any = cli
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command, words
        known = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("-")} <= known, words
        for word in words:
            assert not word.startswith("recipes/") or (RECIPES.parent / word).exists(), word
