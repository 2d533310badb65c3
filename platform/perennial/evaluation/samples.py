"""Lines that a model writes when it is given their beginnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """`text` is how the model went on after `prompt`; `corpus` is where the prompt is from."""

    corpus: str
    prompt: str
    text: str


def generate(
    model: Any, tokenizer: Any, prompt: str, *, new_tokens: int, context_tokens: int, seed: int
) -> str:
    """Up to `new_tokens` tokens after a prompt, sampled at temperature 0.8 within the top 0.95.

    A prompt that leaves no room in the model's context loses its first tokens. The same seed gives
    the same text, whatever was sampled before it.
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
