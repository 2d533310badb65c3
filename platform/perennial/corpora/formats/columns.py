"""Columns of Arrow tables, which Parquet and Arrow files are read into."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings


def find_column(schema: Any, name: str) -> tuple[str, ...] | None:
    """Return the path of a column: its name, and the fields of structs in it; None without one.

    Args:
        schema: the table's schema, or a struct's type.
        name: of the column; where it has none, `a.b` is the field `b` of the structs in the column
            `a`.
    """
    import pyarrow as pa

    fields = [schema.field(index) for index in range(len(schema.names))]
    by_name = {field.name: field for field in fields}
    if name in by_name:
        return (name,)
    outer, dot, inner = name.partition(".")
    if not dot or outer not in by_name or not pa.types.is_struct(by_name[outer].type):
        return None
    path = find_column(by_name[outer].type, inner)
    return path and (outer, *path)


def list_fields(batch: Any, settings: IngestSettings) -> list[tuple[Any, ...]]:
    """Return the values of `settings.other_fields` of every row; None for a column there is not.

    Args:
        batch: a record batch.
        settings: names the fields.
    """
    if not settings.other_fields:
        return [()] * len(batch)
    paths = [find_column(batch.schema, name) for name in settings.other_fields]
    columns = [list_values(batch, path) if path else [None] * len(batch) for path in paths]
    return list(zip(*columns, strict=True))


def list_values(batch: Any, path: tuple[str, ...]) -> list[Any]:
    """Return a column's values; strings as bytes, because no file promises valid UTF-8.

    Args:
        batch: a record batch.
        path: of the column, as `find_column` returns it.
    """
    import pyarrow as pa

    column = _find_values(batch, path)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    types = pa.types
    if any(
        is_type(column.type)
        for is_type in (types.is_string, types.is_large_string, types.is_string_view)
    ):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())


def list_contents(batch: Any, path: tuple[str, ...], settings: IngestSettings) -> list[Any]:
    """Return the values of the column that holds the documents: text, or arrays of ids.

    Args:
        batch: a record batch.
        path: of the column, as `find_column` returns it.
        settings: says which of the two.
    """
    import pyarrow as pa

    if settings.tokens is None:
        return list_values(batch, path)
    column, types = _find_values(batch, path), pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    is_ids = any(is_type(column.type) for is_type in lists)
    if not is_ids or not types.is_integer(column.type.value_type) or column.null_count:
        return list(column.to_pylist())  # which are looked at one by one
    if types.is_fixed_size_list(column.type):
        width = column.type.list_size
        bounds = [row * width for row in range(len(column) + 1)]
    else:
        bounds = column.offsets.to_pylist()
    values, first = column.flatten(), bounds[0]
    if values.null_count:
        return list(column.to_pylist())
    ids = values.to_numpy(zero_copy_only=False)
    return [ids[start - first : end - first] for start, end in pairwise(bounds)]


def count_place(content: Any, settings: IngestSettings) -> int:
    """Return by how much the offset of the next row differs: a row, or the ids of this one.

    An empty list, and one that is absent, count as one id, as they do in Parquet.
    """
    if settings.tokens is None:
        return 1
    return max(1, len(content)) if isinstance(content, list | np.ndarray) else 1


def _find_values(batch: Any, path: tuple[str, ...]) -> Any:
    import pyarrow.compute as pc

    column = batch[path[0]]
    for field in path[1:]:
        column = pc.struct_field(column, field)
    return column
