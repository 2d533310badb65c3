"""Special tokens of a tokenizer: their spelling in a text is text, and never their id."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from perennial.store.stored_json import parse_json

Borders = tuple[tuple[str, int], ...]
"""the tokens between documents with their ids"""
_HIDDEN = "\ufdd0{}\ufdd0"
"""in place of a special token's spelling; no character of a text, by Unicode"""


class HoldsSpecialToken(ValueError):
    """A text that a tokenizer can only encode with a special token, by the text's number."""

    def __init__(self, tokens: dict[int, str]) -> None:
        super().__init__(f"{len(tokens)} texts are encoded as a special token")
        self.tokens = tokens


@lru_cache(maxsize=2)
def hide_special_tokens(tokenizer_json: str, borders: Borders) -> str:
    """Return a tokenizer.json whose model does not find the spelling of a special token in a text.

    `tokenizers` leaves special tokens alone when it is asked to, but a Unigram model still takes
    "</s>" for the piece of that name. The ids of all tokens stay.

    Args:
        tokenizer_json: text of a tokenizer.json in its canonical form.
        borders: the tokens between documents, which are special in any case.
    """
    content = parse_json(tokenizer_json)
    model, added = content["model"], content["added_tokens"]
    for token in added:
        token["special"] = token["special"] or token["content"] in dict(borders)
    hidden = {token["content"] for token in added if token["special"]} | set(dict(borders))
    if model["type"] == "BPE":
        # Only merges lead to a token, unless a whole word is looked up.
        merged = {left + right for left, right in model["merges"]}
        hidden = hidden - merged if model["ignore_merges"] else set()
    names = {text: _HIDDEN.format(number) for number, text in enumerate(sorted(hidden))}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    for token in added:
        # As in the model: a token that is not there would get another id.
        token["content"] = names.get(token["content"], token["content"])
    return json.dumps(content, ensure_ascii=False)


@lru_cache(maxsize=2)
def find_special_ids(tokenizer_json: str, borders: Borders) -> dict[int, str]:
    """Return, by id, the special tokens that no text may become; the unknown token is none of them.

    Args:
        tokenizer_json: text of a tokenizer.json in its canonical form.
        borders: the tokens between documents.
    """
    content: dict[str, Any] = parse_json(tokenizer_json)
    model = content["model"]
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token") is not None:
        unknown = model["vocab"].get(model["unk_token"])
    special = {t["id"]: t["content"] for t in content["added_tokens"] if t["special"]}
    special.pop(unknown, None)
    return special | {number: text for text, number in borders}
