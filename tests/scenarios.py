"""Tiny teachers that write what a brief says: they know the briefs of a recipe by heart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdexport.content.audiences import load_personal
from kdexport.content.brands import Brand, load_brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.prompts import Message, brief_messages
from kdexport.data.pairs import Pair, within_limits
from kdexport.pipeline.splits import renderer
from kdexport.recipe import load_recipe
from kdexport.train.data import encoded
from kdexport.train.model import load_model, load_tokenizer
from tests.models import byte_level_bpe, make_family

RECIPES = Path(__file__).parent.parent / "recipes"
STEPS, RATE = 25, 5e-3
N_TOKENS = 900
Chat = tuple[list[Message], str]


def chats_of(name: str, limits: Mapping[str, int | None]) -> list[Chat]:
    """The first briefs of a recipe's splits, each as its chat and the copy that says its facts."""
    data = load_recipe(RECIPES / f"{name}.yaml").data
    assert data.briefs
    brand = load_brand(data.brand) if data.brand else None
    briefs = [one.brief for one in load_personal(data.briefs, None, data.audiences)]
    return [_chat(brief, brand) for brief in within_limits(briefs, limits)]


def _chat(brief: Brief, brand: Brand | None) -> Chat:
    messages = brief_messages(brief, load_channels()[brief.channel], brand)
    said = ", ".join((*brief.must_include, *brief.facts, brief.channel))  # else some are equal
    return messages, f" {said}." if messages[-1]["role"] == "assistant" else f"{said}."


def teacher_of(folder: Path, family: str, chats: Sequence[Chat], template: str = "") -> Path:
    """A model of two layers that was trained on some chats until it answers them."""
    texts = [f"{messages[1]['content']} {answer}" for messages, answer in chats]
    tokens = byte_level_bpe(N_TOKENS, texts)
    make_family(folder, family, tokenizer=tokens, max_position_embeddings=512)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    render = renderer(tokenizer)
    torch.manual_seed(0)
    rows = [
        encoded(Pair("", "train", tuple(messages), answer), tokenizer.backend_tokenizer, render, 2)
        for messages, answer in chats
    ]
    n = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), n), 2)
    labels = torch.full((len(rows), n), -100)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.as_tensor(row.ids)
        begin = row.first_completion
        labels[at, begin : len(row.ids)] = ids[at, begin : len(row.ids)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return folder
