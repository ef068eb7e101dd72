"""result.json back into a RunResult: every field checked against its declared type, null read as NaN where a number belongs."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from limbeck import storage
from limbeck.contracts import RunResult
from limbeck.errors import InputError, StorageError, printable

RESULT = "result.json"


def load_result(folder: Path) -> RunResult:
    """The result of a run; its artefacts' folders are relative to the run.

    Raises InputError where there is none, StorageError where it is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        raise InputError(
            f"{printable(folder)} holds no {RESULT}. Give the folder of a run; one that was stopped early gets it when the same command continues."
        )
    try:
        result: RunResult = build(RunResult, storage.read_json(path), "result")
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{printable(path)} is damaged: {printable(error)}. Restore it, or run the same command again."
        ) from error
    return result


def build(kind: Any, value: Any, where: str) -> Any:
    """Plain JSON data as the type `kind`: dataclasses, tuples, sequences, mappings, unions, literals and scalars.

    >>> build(tuple[float, ...], [1, None], "returns")
    (1.0, nan)
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_record(kind, _expect(dict, value, where), where)
    if kind is float:
        return math.nan if value is None else float(_expect((int, float), value, where))
    if kind is Path:
        return Path(_expect(str, value, where))
    return _expect(kind, value, where) if isinstance(kind, type) else _build_generic(kind, value, where)


def _build_record(kind: type, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)} & set(values)
    return kind(**{name: build(hints[name], values[name], f"{where}.{name}") for name in sorted(known)})


def _build_generic(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}, allowed {', '.join(map(str, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        present = [a for a in arguments if a is not type(None)]
        return None if value is None else build(present[0], value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {k: build(arguments[1], v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return tuple(build(arguments[0], v, where) for v in _expect(list, value, where))
    raise TypeError(f"{where} has a type that is not read: {kind}")


def _expect(kind: Any, value: Any, where: str) -> Any:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise TypeError(f"{where} is {type(value).__name__}, expected {getattr(kind, '__name__', 'a number')}")
    return value
