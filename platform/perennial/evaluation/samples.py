"""Sequences that a model continues: texts, and ids that a function of the user's draws."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from perennial.user_code import (
    UnusableCode,
    check_call,
    describe_error,
    identify_code,
    import_code,
)

PNG = b"\x89PNG\r\n\x1a\n"
"""the first bytes of a picture"""
MOST_BYTES = 64 << 10
"""of a picture or a text that is kept of a sample"""


@dataclass(frozen=True)
class Rendering:
    """A sample as a function of the user's drew it.

    by: its path, its package's version and its source's digest; the path alone where it cannot be
        imported.
    png: a picture in base64; "" for none.
    text: what it returned in place of a picture.
    problem: why there is neither.
    """

    by: str
    png: str = ""
    text: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """A continuation `text` of `prompt`, which is from or for the corpus `corpus`.

    Of a corpus that is no text both are the ids of its own vocabulary, as numbers.
    """

    corpus: str
    prompt: str
    text: str
    rendering: Rendering | None = None


def describe_undrawn(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the function that did not draw a corpus's samples, and why, by corpus."""
    missed = {s.corpus: s.rendering for s in samples if s.rendering and s.rendering.problem}
    return {corpus: f"{its.by}: {its.problem}" for corpus, its in missed.items()}


@dataclass(frozen=True)
class Renderer:
    """A function of the user's that draws samples, by its import path.

    given: share of a document that is given to the model.
    """

    function: str
    parameters: Mapping[str, Any]
    given: float = 0.5

    def render(self, ids: Sequence[int], given: int, document: Sequence[int]) -> Rendering:
        """Return what the function makes of a sample, or why it makes nothing; it never fails.

        Args:
            ids: of the whole sample, the first `given` of which were given to the model.
            given: their number.
            document: ids of the document that they are from.
        """
        by, more = self.function, {"given": given, "document": list(document)}
        try:
            by = identify_code(self.function)
            function = import_code(self.function)
            check_call(function, "ids", [*more, *self.parameters])
            made = function(list(ids), **more, **self.parameters)
        except UnusableCode as wrong:
            return Rendering(by, problem=str(wrong))
        except (Exception, SystemExit) as error:  # the code of others may raise anything
            return Rendering(by, problem=describe_error(error))
        return _checked(by, made)


def _checked(by: str, made: object) -> Rendering:
    """Return what a function made as a rendering, or why it is none."""
    if isinstance(made, bytes | str) and len(made) > MOST_BYTES:
        what = "bytes" if isinstance(made, bytes) else "characters"
        return Rendering(by, problem=f"it returned {len(made):,} {what}, above {MOST_BYTES:,}")
    if isinstance(made, str):
        return Rendering(by, text=made)
    if isinstance(made, bytes) and made.startswith(PNG):
        return Rendering(by, png=base64.b64encode(made).decode())
    return Rendering(by, problem=f"it returned {type(made).__name__} and neither PNG nor text")


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
    room = max(1, context_tokens - new_tokens)
    ids = tokenizer(prompt)["input_ids"][-room:]
    written = _continue(model, ids, new_tokens, tokenizer.eos_token_id, seed)
    return str(tokenizer.decode(written, skip_special_tokens=True))


@dataclass(frozen=True)
class OwnVocabulary:
    """The entries that the ids of a corpus are: `size` of them from `first` on."""

    first: int
    size: int


def continue_document(
    model: Any,
    document: Sequence[int],
    before: int,
    vocabulary: OwnVocabulary,
    given: int,
    end: int,
    seed: int,
) -> list[int]:
    """Return the first ids of a document, and what a model writes behind them, sampled as text is.

    Args:
        model: causal language model of transformers.
        document: ids of the document in its corpus's own vocabulary, without an end.
        before: the token that stands before it in training.
        vocabulary: of the corpus; what the model writes ends at a token that is not in it.
        given: number of ids that the model gets.
        end: the token that ends a document.
        seed: of the sampling.
    """
    prompt = [before, *(number + vocabulary.first for number in document[:given])]
    written = _continue(model, prompt, len(document) - given, end, seed)
    own = (number - vocabulary.first for number in written)
    return [*document[:given], *takewhile(lambda number: 0 <= number < vocabulary.size, own)]


def _continue(model: Any, prompt: Sequence[int], new_tokens: int, end: int, seed: int) -> list[int]:
    """Return the tokens that a model writes behind others."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    torch.manual_seed(seed)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        pad_token_id=end,
    )
    new: list[int] = written[0, ids.shape[1] :].tolist()
    return new
