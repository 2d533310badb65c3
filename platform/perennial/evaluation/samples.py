"""Texts that a model generates from prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A continuation `text` of `prompt`, which is from or for the corpus `corpus`."""

    corpus: str
    prompt: str
    text: str


def generate(
    model: Any, tokenizer: Any, prompt: str, *, new_tokens: int, context_tokens: int, seed: int
) -> str:
    """Return a continuation of a prompt, sampled at temperature 0.8 within the top 0.95.

    Args:
        model: causal language model of transformers.
        tokenizer: the model's tokenizer.
        prompt: its first tokens are dropped where it is too long for the context.
        new_tokens: most tokens to generate.
        context_tokens: longest sequence of the model, in tokens.
        seed: of the sampling; the result does not depend on earlier calls.
    """
    import torch

    room = max(1, context_tokens - new_tokens)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"][:, -room:].to(model.device)
    torch.manual_seed(seed)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        pad_token_id=tokenizer.eos_token_id,
    )
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
