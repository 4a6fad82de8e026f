"""Cross the products with channels, campaigns, audiences and tones, and write briefs.jsonl.

    python recipes/data/make_briefs.py

Deterministic: each product has five briefs, each for another channel; all briefs of a product are
in one split.
"""

import json
import random
from pathlib import Path

import yaml

from kdexport.content.briefs import split_of

HERE = Path(__file__).parent
CHANNELS = (
    "ad_description",
    "ad_headline",
    "email_subject",
    "product_description",
    "push_note",
    "sms",
    "social_post",
)
BRIEFS_PER_PRODUCT = 5
FACTS_PER_BRIEF = 3
CAMPAIGNS = (
    "none",
    "none",
    "none",
    "Black Friday",
    "back to school",
    "spring sale",
    "launch",
    "loyalty",
    "holiday gift",
    "clearance",
    "referral",
)
TONES = ("friendly", "bold", "elegant", "playful", "warm", "confident", "witty")


def read_products() -> list[dict[str, object]]:
    """All products of the files in ``products``, by file and in their order."""
    files = sorted((HERE / "products").glob("*.yaml"))
    return [product for file in files for product in yaml.safe_load(file.read_text("utf-8"))]


def make_briefs() -> list[dict[str, object]]:
    """The rows of briefs.jsonl."""
    rng = random.Random(0)
    briefs: list[dict[str, object]] = []
    for number, product in enumerate(read_products()):
        facts, audiences = list(product["facts"]), list(product["audiences"])  # type: ignore[call-overload]
        split = split_of(str(product["name"]))
        for place, channel in enumerate(rng.sample(CHANNELS, BRIEFS_PER_PRODUCT)):
            chosen = rng.sample(facts, FACTS_PER_BRIEF)
            briefs.append(
                {
                    "id": f"p{number:03d}-{place}",
                    "product": product["name"],
                    "facts": chosen,
                    "audience": rng.choice(audiences),
                    "channel": channel,
                    "campaign": rng.choice(CAMPAIGNS),
                    "tone": rng.choice(TONES),
                    "split": split,
                }
            )
    return briefs


def render(briefs: list[dict[str, object]]) -> str:
    """The text of briefs.jsonl."""
    return "".join(json.dumps(brief, ensure_ascii=False) + "\n" for brief in briefs)


if __name__ == "__main__":
    (HERE / "briefs.jsonl").write_text(render(make_briefs()), "utf-8")
