"""How often a teacher strays from the brief, by the words that its copy is begun with.

    python bench/openings.py exported/quickstart-teacher-int8 recipes/data/briefs.jsonl

A small teacher goes on from its opening: some wordings lead it to the brief's facts, others away.
Each opening below is tried on the same held-out briefs, greedily. Writes JSON to stdout: per
opening, the share of copies that stray (`kdexport.content.checks.strays`) and that never end.
"""

import json
import sys
from pathlib import Path

from kdexport.content.briefs import load_briefs
from kdexport.content.channels import load_channels
from kdexport.content.checks import strays
from kdexport.content.prompts import brief_messages, split_opening
from kdexport.runtime.generate import generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import open_session
from kdexport.runtime.text import first_line, load_text

N_BRIEFS = 110
OPENINGS = (
    "{product}",
    "{product}:",
    "You will love {product}:",
    "Made for you: {product}:",
    "Go bold with {product}:",
    "The finest choice: {product}:",
    "Treat yourself to {product}:",
    "Fun starts with {product}:",
    "Choose {product}:",
    "Get {product}:",
    "Enjoy {product}:",
    "Come and try {product}:",
    "Welcome to {product}:",
    "Say hello to {product}:",
    "Discover {product}:",
    "Why wait? Get {product}:",
    "Spoiler: you want {product}:",
    "Smart move: {product},",
    "With {product},",
    "{product} is",
)


def main(bundle: Path, briefs_path: Path) -> None:
    session, codec, channels = open_session(bundle), load_text(bundle), load_channels()
    briefs = [brief for brief in load_briefs(briefs_path) if brief.split != "train"][:N_BRIEFS]
    found = {}
    for opening in OPENINGS:
        prompts = []
        for brief in briefs:
            asked, _ = split_opening(brief_messages(brief, channels[brief.channel]))
            begun = {"role": "assistant", "content": opening.replace("{product}", brief.product)}
            prompts.append(codec.encode(codec.render_chat([*asked, begun])))
        written = generate_batch(
            session,
            prompts,
            make_sampler(),
            max_new_tokens=[channels[brief.channel].max_new_tokens for brief in briefs],
            stop_ids=codec.line_end_ids,
            batch_size=32,
        )
        texts = [first_line(codec.decode(completion.ids)) for completion in written]
        off = sum(strays(text, brief.facts) for text, brief in zip(texts, briefs, strict=True))
        endless = sum(not completion.finished for completion in written)
        found[opening] = {"stray": round(off / len(briefs), 3), "endless": endless / len(briefs)}
    print(json.dumps({"briefs": len(briefs), "openings": found}, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
