"""Columns of Arrow tables, which Parquet and Arrow files are read into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """Return the values of `settings.step_fields` of every row; None for a column there is not.

    Args:
        batch: a record batch.
        settings: names the fields.
    """
    if not settings.step_fields:
        return [()] * len(batch)
    paths = [find_column(batch.schema, name) for name in settings.step_fields]
    columns = [list_values(batch, path) if path else [None] * len(batch) for path in paths]
    return list(zip(*columns, strict=True))


def list_values(batch: Any, path: tuple[str, ...]) -> list[Any]:
    """Return a column's values; strings as bytes, because no file promises valid UTF-8.

    Args:
        batch: a record batch.
        path: of the column, as `find_column` returns it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch[path[0]]
    for field in path[1:]:
        column = pc.struct_field(column, field)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    types = pa.types
    if any(
        is_type(column.type)
        for is_type in (types.is_string, types.is_large_string, types.is_string_view)
    ):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())
