"""What would be right, for the commonest mistakes in files: a hint beside the reason. Pure."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping

_SHORTEST_TEXT = 20
_SHOWN = 120
_LONGEST_DETAIL = 200
_AROUND = 1000  # bytes around the first bad one that are looked at
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_HEADS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),  # its first three bytes may be text
    ".xz": re.compile(rb"\xfd7zXZ\0"),
}
HEAD_BYTES = 64
"""of a file, for `describe_head`"""


def describe_missing(field: str, fields: Mapping[str, object]) -> str:
    """Return which fields there are instead of one, and the one that seems to hold the text.

    Args:
        field: the field that is missing.
        fields: the others with their values.
    """
    nested = {
        f"{name}.{inner}": value
        for name, values in fields.items()
        if isinstance(values, Mapping)
        for inner, value in values.items()
    }
    texts = {name: text for name, text in (nested | dict(fields)).items() if isinstance(text, str)}
    longest = max(texts, key=lambda name: len(texts[name]), default="")
    detail = f"no field {field!r}; its fields are {', '.join(fields) or 'none'}"[:_SHOWN]
    # An identifier or a URL is no text.
    value = texts.get(longest, "").strip()
    if len(value) >= _SHORTEST_TEXT and (" " in value or not value.isascii()):
        detail += f"; set corpora.text_field: {longest[:_SHOWN]}"
    return detail


def describe_head(head: bytes) -> str:
    """Return why a file that should be text in UTF-8 is none, by its first bytes; "" if it may be.

    Args:
        head: the first HEAD_BYTES of the file.
    """
    for suffix, magic in _HEADS.items():
        if magic.match(head):
            return f"not text: it is compressed; add {suffix} to its name"
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            order = "LE" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE) else "BE"
            return _convert(f"{encoding}-{order}", encoding)
    # Text of mostly ASCII characters, of two bytes each.
    zeros = [head[0::2].count(0), head[1::2].count(0)]
    for order, many, few in (("LE", zeros[1], zeros[0]), ("BE", zeros[0], zeros[1])):
        if len(head) >= 2 and many * 4 > len(head) and few == 0:
            return _convert(f"UTF-16-{order}", f"UTF-16{order}")
    return ""


def describe_bytes(data: bytes, error: UnicodeDecodeError) -> str:
    """Return why bytes are no UTF-8, and the encoding that they may be in.

    Args:
        data: the bytes.
        error: what their decoding raised.
    """
    problem = f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start} ({error.reason})"
    data = data[max(0, error.start - _AROUND) : error.start + _AROUND]
    text = data.decode("utf-8", "surrogateescape")
    single = sum("\udc80" <= character <= "\udcff" for character in text)
    several = sum("\x7f" < character < "\ud800" for character in text)
    high = [byte for byte in data if byte >= 0x80]
    control = any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in data)
    # Damaged UTF-8 has whole characters too; other alphabets are mostly high bytes.
    if several >= single or control or len(high) * 3 > len(data):
        return problem
    encoding = "WINDOWS-1252" if any(byte < 0xA0 for byte in high) else "ISO-8859-1"
    return f"{problem}; {_convert(encoding, encoding)}"[:_LONGEST_DETAIL]


def _convert(name: str, argument: str) -> str:
    prefix = "" if name.startswith(("ISO", "WINDOWS")) else "not UTF-8: "
    return f"{prefix}it reads as {name}; convert with iconv -f {argument} -t UTF-8"
