"""Licence and languages of a stored model, as the front matter of its card names them."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict

from perennial.store import open_store

CARD: Final = "README.md"
_LONGEST_BYTES = 1 << 20
"""of a card that is read"""
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FORMS = {
    "license": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"),
    "license_name": re.compile(r"[A-Za-z0-9][\w .,+()/-]{0,99}"),
    "license_link": re.compile(r"https?://[^\s\x00-\x20<>\"'`]{1,500}"),
    "language": re.compile(r"[A-Za-z]{2,16}(-[A-Za-z0-9]{1,8}){0,3}"),
}
"""of the values that are taken over, by field"""


class BaseCard(BaseModel):
    """Licence and languages of a stored model, in the fields of the Hub's metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    license: str | None = None
    """such as `apache-2.0`; `other` where the next two say which"""
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """fields whose values are no licence and no languages, or the reason why none was read"""

    @property
    def licence(self) -> dict[str, str | None]:
        """Return the fields of the licence, as the Hub's metadata has them."""
        return self.model_dump(include={"license", "license_name", "license_link"})


def read_base_card(path: str) -> BaseCard | None:
    """Return what the card beside a stored model says; None where there is no front matter.

    Args:
        path: of the model, as the run file gives it: a folder or a .gguf file, local or in a
            bucket.
    """
    folder = (path.rpartition("/")[0] or ".") if path.endswith(".gguf") else path
    try:
        with open_store(folder).open(CARD) as card:
            data = card.read(_LONGEST_BYTES)
    except FileNotFoundError:
        return None
    except (IsADirectoryError, PermissionError) as unreadable:
        return BaseCard(ignored=(f"its {CARD} cannot be read ({unreadable.strerror})",))
    return parse_base_card(data.decode("utf-8", errors="replace"))


def parse_base_card(text: str) -> BaseCard | None:
    """Return what the front matter of a card says; None where there is none.

    Args:
        text: of the card.
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return None
    try:
        # Every scalar as it is spelled: `no` is a language, and 1.0 is no number here.
        content = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return BaseCard(ignored=("its front matter is no YAML",))
    if not isinstance(content, dict):
        return BaseCard(ignored=("its front matter names no fields",)) if content else None
    languages = content.get("language", [])
    values: dict[str, list[Any]] = {
        **{name: [content[name]] for name in _FORMS if content.get(name)},
        "language": languages if isinstance(languages, list) else [languages],
    }
    if isinstance(values.get("license", [""])[0], list) and len(values["license"][0]) == 1:
        values["license"] = values["license"][0]  # the Hub takes a list of one as well
    taken = {name: [v for v in its if _is_like(name, v)] for name, its in values.items()}
    ignored = [name for name, its in values.items() if len(taken[name]) < len(its)]
    chosen = {name: (taken.get(name) or [None])[0] for name in _FORMS if name != "language"}
    if chosen["license"] != "other":
        chosen |= {"license_name": None, "license_link": None}
    card = BaseCard(
        **chosen,
        languages=tuple(dict.fromkeys(taken["language"])),
        ignored=tuple(f"{name} of its {CARD}" for name in ignored),
    )
    return card if card != BaseCard() else None


def _is_like(field: str, value: object) -> bool:
    return isinstance(value, str) and _FORMS[field].fullmatch(value) is not None
