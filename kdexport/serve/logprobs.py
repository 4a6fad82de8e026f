"""Tokens and their log-probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from kdexport.runtime.generate import Step
from kdexport.runtime.text import TextCodec


def token_text(codec: TextCodec, token_id: int) -> str:
    """The text of a token alone; the tokenizer's own name of one that is no whole text."""
    text = codec.decode([token_id])
    if text and "\ufffd" not in text:
        return text
    return str(codec.tokenizer.id_to_token(token_id) or f"token_id:{token_id}")


def completion_logprobs(
    codec: TextCodec, steps: Sequence[Step], n_top: int, offset: int = 0
) -> dict[str, Any]:
    """As /v1/completions has them. ``offset``: characters before the first of the tokens.

    The chosen token is among the likeliest, whether it is one of the ``n_top`` or not; a token
    without a log-probability, the first of a prompt, has null.
    """
    tokens = [token_text(codec, step.token_id) for step in steps]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    top: list[dict[str, float] | None] = [
        None
        if step.logprob is None
        else {token_text(codec, one): logprob for one, logprob in step.top} | {token: step.logprob}
        for token, step in zip(tokens, steps, strict=True)
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [step.logprob for step in steps],
        "top_logprobs": top if n_top else None,
        "text_offset": offsets,
    }


def chat_logprobs(codec: TextCodec, steps: Sequence[Step]) -> dict[str, Any]:
    """As /v1/chat/completions has them; the end token is none of the text's."""
    written = [step for step in steps if step.in_text]
    return {
        "content": [
            {
                **_token(codec, step.token_id, step.logprob),
                "top_logprobs": [_token(codec, *one) for one in step.top],
            }
            for step in written
        ],
        "refusal": None,
    }


def _token(codec: TextCodec, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = codec.decode([token_id])
    is_whole = bool(text) and "\ufffd" not in text
    return {
        "token": token_text(codec, token_id),
        "logprob": logprob,
        "bytes": list(text.encode()) if is_whole else None,
    }
