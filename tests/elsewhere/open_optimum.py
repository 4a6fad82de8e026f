"""ORTModelForCausalLM opens a bundle and goes on with texts."""

from typing import Any

from optimum.onnxruntime import ORTModelForCausalLM
from serve import serve
from transformers import AutoTokenizer


def answer(request: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens; more than one prompt are one batch, padded on the left."""
    model = ORTModelForCausalLM.from_pretrained(request["bundle"])
    tokenizer = AutoTokenizer.from_pretrained(request["bundle"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = request.get("prompts") or [
        tokenizer.apply_chat_template(
            request["messages"], tokenize=False, add_generation_prompt=True
        )
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
    n_new = request["n_new"]
    made = model.generate(
        **inputs, max_new_tokens=n_new, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    new: list[list[int]] = made[:, inputs["input_ids"].shape[1] :].tolist()
    return new


serve(answer)
