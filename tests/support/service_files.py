"""What TensorBoard's and W&B's own files hold, read without either program."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
"""bytes of a block of W&B's log; a record that does not fit is in several"""
_HEADER = 7


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value by tag, in the order of the steps, of the event files of a folder."""
    values: dict[str, list[tuple[int, float]]] = {}
    for event in _events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                values.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: sorted(its) for tag, its in values.items()}


def read_pictures(folder: Path) -> dict[str, bytes]:
    """Return the encoded pictures by tag."""
    shown = [value for event in _events(folder) for value in event.summary.value]
    return {v.tag: v.image.encoded_image_string for v in shown if v.WhichOneof("value") == "image"}


def read_texts(folder: Path) -> dict[str, str]:
    """Return the last text by tag."""
    shown = [value for event in _events(folder) for value in event.summary.value]
    named = [value for value in shown if value.WhichOneof("value") == "tensor"]
    return {value.tag: value.tensor.string_val[0].decode() for value in named}


def _events(folder: Path) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16


def read_wandb(folder: Path) -> dict[str, list[Any]]:
    """Return the records of all offline runs below `folder`/wandb, by kind, in their order.

    A record of kind `history` is the values of one call by name.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            kind = str(record.WhichOneof("record_type"))
            value = getattr(record, kind)
            if kind == "history":
                value = {
                    item.key or "/".join(item.nested_key): item.value_json for item in value.item
                }
                value = {name: json.loads(text) for name, text in value.items()}
            records.setdefault(kind, []).append(value)
    return records


def _records(data: bytes) -> Iterator[bytes]:
    at, whole = _HEADER, b""
    while at + _HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        whole += data[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # a whole one, or the last part
            yield whole
            whole = b""
