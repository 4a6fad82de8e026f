"""onnxruntime-genai opens a bundle and goes on with texts."""

import json
from typing import Any

import numpy as np
import onnxruntime_genai as og
from serve import serve


def answer(request: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens; more than one prompt are one batch, padded on the right."""
    model = og.Model(request["bundle"])
    tokenizer = og.Tokenizer(model)
    prompts = request.get("prompts") or [
        tokenizer.apply_chat_template(json.dumps(request["messages"]), add_generation_prompt=True)
    ]
    ids = tokenizer.encode_batch(prompts).as_numpy() if len(prompts) > 1 else None
    first = tokenizer.encode(prompts[0]) if ids is None else ids
    length = np.asarray(first).shape[-1]
    params = og.GeneratorParams(model)
    params.set_search_options(
        max_length=length + request["n_new"], do_sample=False, batch_size=len(prompts)
    )
    generator = og.Generator(model, params)
    generator.append_tokens(first)
    while not generator.is_done():
        generator.generate_next_token()
    return [
        np.asarray(generator.get_sequence(row))[length:].tolist() for row in range(len(prompts))
    ]


serve(answer)
