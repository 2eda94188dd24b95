"""The types of rows for loaders: one table for each kind of row, made from its pydantic model.

The dataset cards, ``distilld schema --format``, the forms of a snapshot and its Parquet files all come from these
tables, so none of them can contradict the check that a row passes before it is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel

Kind = Literal["string", "int64", "bool", "json", "struct"]


@dataclass(frozen=True, slots=True)
class Column:
    """A key of a row: its type, whether it is a list of that type, and whether it may be null.

    ``json`` is a value of any type; a ``struct`` has ``fields``.
    """

    name: str
    kind: Kind = "string"
    is_list: bool = False
    nullable: bool = False
    fields: tuple[Column, ...] = ()


def columns_of(model: type[BaseModel]) -> tuple[Column, ...]:
    """Return the columns of the rows that a model checks, in the order of their keys."""
    return tuple(_column(name, field.annotation) for name, field in model.model_fields.items())


def _column(name: str, annotation: Any) -> Column:
    origin, words = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _column(name, words[0])
    if origin in (Union, UnionType):
        (one,) = [word for word in words if word is not NoneType]
        return replace(_column(name, one), nullable=True)
    if origin is Literal:
        return _column(name, type(words[0]))
    if origin is list:
        return replace(_column(name, words[0]), is_list=True)
    if hasattr(annotation, "model_fields"):
        return Column(name, "struct", fields=columns_of(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Column(name)
    kinds: dict[Any, Kind] = {str: "string", int: "int64", bool: "bool"}
    return Column(name, kinds.get(annotation, "json"), nullable=annotation not in kinds)


def card_features(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the columns as the front matter of a Hugging Face card lists them."""

    def feature(column: Column) -> dict[str, Any]:
        inner: Any = card_features(column.fields) if column.fields else column.kind
        if column.is_list:
            return {"name": column.name, "list": inner}
        return {"name": column.name, "struct" if column.fields else "dtype": inner}

    return [feature(column) for column in columns]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a loader writes types: format strings for scalars, lists, structs, fields of a struct, and a whole file."""

    scalars: Mapping[str, str]
    list_of: str
    struct_of: str
    field: str
    top_field: str
    file: str

    def text(self, columns: Sequence[Column]) -> str:
        """Return the types of whole rows, as a file to import or a value to paste.

        Raises:
            KeyError: The loader has no type for one of the columns.
        """
        return self.file.format("".join(f"    {self._field(column, self.top_field)},\n" for column in columns))

    def _field(self, column: Column, form: str) -> str:
        return form.format(name=column.name, type=self._type(column), nullable=column.nullable)

    def _type(self, column: Column) -> str:
        inner = (
            self.struct_of.format(", ".join(self._field(each, self.field) for each in column.fields))
            if column.fields
            else self.scalars[column.kind]
        )
        return self.list_of.format(inner) if column.is_list else inner


def _scalars(string: str, int64: str, boolean: str, **more: str) -> Mapping[str, str]:
    return MappingProxyType({"string": string, "int64": int64, "bool": boolean, **more})


_ARROW_FIELD: Final = 'pa.field("{name}", {type}, nullable={nullable})'
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        "hf": Dialect(
            _scalars('hf.Value("string")', 'hf.Value("int64")', 'hf.Value("bool")', json="hf.Json()"),
            "hf.List({})", "{{{}}}", '"{name}": {type}', '"{name}": {type}',
            "import datasets as hf\n\nfeatures = hf.Features({{\n{}}})\n",
        ),
        "arrow": Dialect(
            _scalars("pa.string()", "pa.int64()", "pa.bool_()"),
            "pa.list_({})", "pa.struct([{}])", _ARROW_FIELD, _ARROW_FIELD,
            "import pyarrow as pa\n\nschema = pa.schema([\n{}])\n",
        ),
        "polars": Dialect(
            _scalars("pl.String", "pl.Int64", "pl.Boolean"),
            "pl.List({})", "pl.Struct({{{}}})", '"{name}": {type}', '"{name}": {type}',
            "import polars as pl\n\nschema = pl.Schema({{\n{}}})\n",
        ),
        "duckdb": Dialect(
            _scalars("VARCHAR", "BIGINT", "BOOLEAN", json="JSON"),
            "{}[]", "STRUCT({})", "{name} {type}", "'{name}': '{type}'",
            "{{\n{}}}\n",
        ),
    }
)  # fmt: skip
"""The loaders that do not always read cards; ``duckdb`` is the value of ``columns`` for its ``read_json``."""
