"""Building blocks of every section of a file: `Section`, number types, amounts, choices by kind.

Rooms that bring a section of their own (a schedule, a replay policy) import this module instead of
the run file's schema, which imports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from perennial.registry import Registry


class Section(BaseModel):
    """A mapping in a file: unknown keys are errors, and it never changes after it was read.

    The text below a field is its documentation, in the reference and in error messages.
    """

    # A number that is not finite would be null in the ledger, and then no number at all.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where no field takes them; Python counts with them as 1 and 0."""
        field = cls.model_fields[info.field_name or ""]
        if _holds_boolean(value) and not _takes_boolean(field.annotation):
            raise PydanticCustomError("boolean", "true and false are no values of this field")
        return value


def _holds_boolean(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_boolean, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_boolean, value))
    return isinstance(value, bool)


def _takes_boolean(annotation: Any) -> bool:
    """Return whether a type has a place for a boolean; sections check their own fields."""
    if annotation in (bool, Any) or isinstance(annotation, bool):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_takes_boolean, get_args(annotation)))


class Changeable(StrEnum):
    """When a field of the run file may change; each field declares its own.

    PINNED: never, once the run has begun.
    HELD: not while a stage, release or trial is unfinished; the next one takes the new value.
    JOIN: at any time; what was begun has the value that it began with, the next one the new.
    FREE: at any time, from then on.
    """

    PINNED = "pinned"
    HELD = "join, held"
    JOIN = "join"
    FREE = "free"


PINNED, HELD, JOIN, FREE = Changeable


@dataclass(frozen=True)
class IsPath:
    """Mark a text, or each text or name in a field, as a file, a folder or a bucket's url.

    In a file, a relative path is one from that file's folder.

    Attributes:
        or_name: it may be a plain name instead, such as that of an lm-eval task.
        is_output: it is written, so that nothing need be there.
    """

    or_name: bool = False
    is_output: bool = False


_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def _check_expanded(text: str, info: ValidationInfo) -> str:
    """Refuse a variable of the shell in a path; a run that was opened with one keeps it."""
    variable = _VARIABLE.search(text)
    if variable is not None and not (info.context and info.context.get("stored")):
        raise PydanticCustomError(
            "unexpanded", "{variable} is not expanded in a file", {"variable": variable[0]}
        )
    return text


ExpandedText = Annotated[str, AfterValidator(_check_expanded)]
PathText = Annotated[str, AfterValidator(_check_expanded), IsPath()]
OutputPath = Annotated[str, AfterValidator(_check_expanded), IsPath(is_output=True)]
PathOrName = Annotated[str, AfterValidator(_check_expanded), IsPath(or_name=True)]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

_PATTERN = re.compile(r"^\s*(\d+(?:[._]\d+)*)\s*([kMBT]?)\s*(%|steps?|tokens?)\s*$")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class AmountValue:
    """A number of optimizer steps, a number of tokens, or a percentage of a total."""

    number: Fraction
    unit: Literal["steps", "tokens", "percent"]
    text: str

    def steps(self, total_steps: int, tokens_per_step: int) -> int:
        """Return this amount in whole optimizer steps, rounded down.

        Args:
            total_steps: steps that 100% stands for.
            tokens_per_step: tokens in one global batch.
        """
        if self.unit == "steps":
            return int(self.number)
        if self.unit == "tokens":
            return int(self.number / tokens_per_step)
        return int(self.number * total_steps / 100)

    def __str__(self) -> str:
        return self.text


def parse_amount(value: Any) -> AmountValue:
    """Read `2%`, `500 steps` or `4M tokens` (k, M, B, T).

    Raises:
        ValueError: the text has no unit, or is no amount.
    """
    if isinstance(value, AmountValue):
        return value
    match = _PATTERN.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not an amount with its unit")
    digits, scale, unit = match.groups()
    number = Fraction(digits.replace("_", "")) * _SCALE[scale]
    kind: Literal["steps", "tokens", "percent"] = (
        "percent" if unit == "%" else "steps" if unit.startswith("step") else "tokens"
    )
    if kind == "percent" and scale:
        raise ValueError(f"{value!r} scales a percentage")
    return AmountValue(number, kind, " ".join(value.split()))


Amount = Annotated[
    AmountValue,
    BeforeValidator(parse_amount),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"$comment": "amount", "type": "string", "pattern": _PATTERN.pattern}),
]


def _check_positive(amount: AmountValue) -> AmountValue:
    if not amount.number:
        raise PydanticCustomError("amount_of_zero", "it must be above 0")
    return amount


PositiveAmount = Annotated[Amount, AfterValidator(_check_positive)]


@dataclass(frozen=True)
class ByKind:
    """Mark a field whose section is chosen by the section's own key `kind`.

    The sections are looked up in a registry when a value is validated, so that the ones that
    plug-ins bring are found. A validation context `{"stored": True}` reads what an earlier version
    or an absent plug-in wrote, through the section's `read_stored`.

    Args:
        registry: section classes by kind; each has a field `kind`.
        default: the kind of a section that names none.
        absent: section that stands for a stored one whose kind is not known.
    """

    registry: Registry[Any]
    default: str
    absent: type[Section]

    def choose(self, value: Any) -> type[Section] | None:
        """Return the section class that `value` asks for; None for a kind that is not known."""
        if isinstance(value, Section):
            return type(value)
        kind = value.get("kind", self.default) if isinstance(value, Mapping) else self.default
        if not isinstance(kind, str):
            return None
        if kind not in self.registry:
            # Worker processes read a section without having loaded a run file.
            self.registry.load_plugins()
        if kind not in self.registry:
            return None
        section: type[Section] = self.registry[kind]
        return section

    def __hash__(self) -> int:
        return id(self.registry)

    def __get_pydantic_core_schema__(
        self, source: type[Section], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def dump(section: Section, info: SerializationInfo) -> dict[str, Any]:
            return section.model_dump(mode=info.mode)

        schema = core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True),
        )
        optional = type(None) in get_args(source)
        return core_schema.nullable_schema(schema) if optional else schema

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        built_in = [k for k in self.registry if self.registry.provider(k) == "perennial"]
        sections = [self.registry[kind] for kind in built_in]
        schemas = [handler(section.__pydantic_core_schema__) for section in sections]
        if schema["type"] == "nullable":
            schemas.append({"type": "null"})
        return {"anyOf": schemas}

    def _validate(self, value: Any, info: ValidationInfo) -> Section:
        if isinstance(value, Section):
            return value
        section = self.choose(value)
        stored = bool(info.context and info.context.get("stored"))
        if stored and isinstance(value, Mapping):
            return self.absent(**value) if section is None else section.read_stored(value)  # type: ignore[attr-defined]
        if section is None:
            raise self._unknown(value.get("kind") if isinstance(value, Mapping) else value)
        return section.model_validate(value)

    def _unknown(self, kind: Any) -> ValidationError:
        error = unknown_name(self.registry)
        details = InitErrorDetails(type=error, loc=("kind",), input=kind)
        return ValidationError.from_exception_data("kind", [details])


def unknown_name(registry: Registry[Any]) -> PydanticCustomError:
    """Return the validation error of a name that a registry does not have."""
    return PydanticCustomError(
        "unknown_name",
        "there is no {what} of that name; known are {known}",
        {"what": registry.kind, "known": ", ".join(registry)},
    )


def choice_of(info: FieldInfo | None) -> ByKind | None:
    """Return the choice by kind that a field is; None for any other field."""
    return next((m for m in info.metadata if isinstance(m, ByKind)), None) if info else None


def item_choice_of(info: FieldInfo | None) -> ByKind | None:
    """Return the choice by kind that each item of a list is; None for any other field."""
    items = get_args(info.annotation) if info else ()
    marks = [mark for item in items for mark in getattr(item, "__metadata__", ())]
    return next((mark for mark in marks if isinstance(mark, ByKind)), None)


def path_of(info: FieldInfo | None) -> IsPath | None:
    """Return the mark of a field whose texts, items or names are paths; None for any other."""
    if info is None:
        return None
    marks = [mark for mark in info.metadata if isinstance(mark, IsPath)]
    return marks[0] if marks else _path_in(info.annotation)


def _path_in(annotation: Any) -> IsPath | None:
    for item in get_args(annotation):
        mark = item if isinstance(item, IsPath) else _path_in(item)
        if mark is not None:
            return mark
    return None


def change_of(info: FieldInfo) -> Changeable | None:
    """Return when a field may change; None where it does not say, as a section does not."""
    return next((mark for mark in info.metadata if isinstance(mark, Changeable)), None)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that values of a type are or hold; None for a type without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def is_mapping_of_sections(info: FieldInfo) -> bool:
    """Return whether a field holds sections by names that the user chooses."""
    return get_origin(info.annotation) is dict and section_in(info.annotation) is not None
