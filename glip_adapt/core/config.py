"""Convert TOML or JSON mappings to frozen dataclasses and back; errors name the place and the nearest valid key.

A config is any dataclass whose fields are numbers, strings, booleans, ``None``, literals, tuples, string-keyed
mappings, unions of these, or other such dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from glip_adapt.core.errors import UnknownNameError

T = TypeVar("T")

MAX_TOML_BYTES = 2**16
MAX_KEY_PARTS = 100  # of a dotted key: the time and memory of tomllib grow with their square

_TEXT = re.compile(  # strings and comments of TOML; an unfinished one ends with its line or with the file
    r'''"""(?:\\.|.)*?(?:"""|\Z)|\'\'\'.*?(?:\'\'\'|\Z)|"(?:\\.|[^"\\\n])*"?|'[^'\n]*'?|\#[^\n]*''', re.DOTALL
)

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "nothing"}


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not UTF-8 or not TOML, with line and column; if it is larger than 64 KiB, or nested
            too deep.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Give the path of a TOML file.")
    if (size := path.stat().st_size) > MAX_TOML_BYTES:
        raise ValueError(
            f"{path}: it has {size:,} bytes, more than the {MAX_TOML_BYTES:,} that a file of settings needs."
        )
    try:
        text = path.read_text(encoding="utf-8")
        keys = re.split(r"[=,\[\]{}\n]", _TEXT.sub("", text))
        if max(key.count(".") for key in keys) >= MAX_KEY_PARTS:
            raise ValueError(f"a key has more than {MAX_KEY_PARTS} parts")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid TOML: it is nested too deep.") from error
    except ValueError as error:  # also of a number with too many digits
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build an instance of the dataclass ``cls`` from ``mapping``; absent keys keep their defaults.

    Whole numbers become floats and lists become tuples where the field asks for it; nothing else is converted.

    Args:
        cls: a dataclass.
        mapping: field name → value, nested mappings for nested dataclasses.
        where: place for error messages, for example the file and the table.

    Raises:
        UnknownNameError: if a key is unknown.
        ValueError: if a key is missing, a value has the wrong type, or ``cls`` itself refuses the values.
    """
    values = _convert_fields(cls, mapping, where)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is a dataclass by contract
    required = (field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING)
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where}: missing {_quote(missing)}.")
    return _build(lambda: cls(**values), where)


def override(instance: T, mapping: Mapping[str, Any], where: str) -> T:
    """Copy a dataclass instance with the fields in ``mapping`` replaced; nested mappings replace nested fields.

    Arguments and errors as for ``from_mapping``.
    """
    values = _convert_fields(type(instance), mapping, where, current=instance)
    return _build(lambda: dataclasses.replace(instance, **values), where)  # type: ignore[type-var]


def to_mapping(instance: Any) -> dict[str, Any]:
    """Convert a dataclass instance to a dict for JSON and TOML: tuples become lists, nested dataclasses dicts.

    Raises:
        TypeError: if JSON cannot hold a value.
    """
    return json.loads(json.dumps(dataclasses.asdict(instance)))


def describe_unknown(name: str, choices: Collection[str]) -> str:
    """Return ``name``, the nearest of ``choices`` if one is near, and all choices, for an error message."""
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"'{name}'{hint}; valid are {_quote(sorted(choices))}"


def unknown_name(kind: str, name: str, choices: Collection[str]) -> UnknownNameError:
    """Build the error for a ``name`` that is not in ``choices``; ``kind`` is a word such as "trunk"."""
    return UnknownNameError(f"Unknown {kind} {describe_unknown(name, choices)}.")


def _convert_fields(cls: type, mapping: Any, where: str, current: Any = None) -> dict[str, Any]:
    """Convert the values of ``mapping`` to the types of the fields of ``cls``; refuse unknown keys."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: expected a table of settings, got {_show(mapping)}.")
    kinds = _field_types(cls)
    values = {}
    for key, value in mapping.items():
        if key not in kinds:
            raise UnknownNameError(f"{where}: unknown key {describe_unknown(str(key), kinds)}.")
        place, old = f"{where}, {key}", getattr(current, key, None)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            values[key] = override(old, value, place)
        else:
            values[key] = _convert(value, kinds[key], place)
    return values


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Return ``value`` as type ``kind``, or raise ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return from_mapping(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        if value is not None and type(None) in arguments and len(arguments) == 2:  # X | None: the error of X says more
            return _convert(value, next(option for option in arguments if option is not type(None)), where)
        for option in arguments:
            with suppress(ValueError):
                return _convert(value, option, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(value, arguments, where)
    if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _convert(item, arguments[1], f"{where}, {key}") for key, item in value.items()}
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in arguments):
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (bool, int, str, type(None)) and type(value) is kind:
        return value
    raise ValueError(f"{where}: expected {_describe(kind)}, got {_show(value)}.")


def _convert_tuple(value: list[Any] | tuple[Any, ...], kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """Return a list as a tuple of any length (``...``), or with exactly one entry per kind."""
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{where}: expected {len(kinds)} entries, got {len(value)}: {_show(value)}.")
    return tuple(
        _convert(item, kind, f"{where}, entry {position}")
        for position, (item, kind) in enumerate(zip(value, kinds, strict=True), start=1)
    )


def _build(make: typing.Callable[[], T], where: str) -> T:
    """Return ``make()``; name ``where`` in the error if the dataclass refuses a relation between fields."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@functools.cache
def _field_types(cls: type) -> dict[str, Any]:
    """Return field name → resolved type of the constructor's fields."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _describe(kind: Any) -> str:
    """Describe a type for a person who writes TOML."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        return "a list"
    return _NAMES.get(kind, "a table")


def _show(value: Any) -> str:
    """Return a value and its type, in at most 60 characters and the type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _quote(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
