"""Recipes as YAML: data only. No tags, no anchors, no duplicate keys, no surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from limbeck import storage
from limbeck.errors import InputError, printable
from limbeck.settings import Recipe

MAX_BYTES, MAX_DEPTH = 1 << 20, 20


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses anchors, duplicate keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("anchors and aliases are not allowed")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {printable(key)!r} appears twice")
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file. Raises InputError with the line for anything that is not plain YAML."""
    if not path.is_file():
        raise InputError(
            f"no recipe file at {printable(path)}. Give the path of a .yaml file, such as recipe.yaml of an earlier run."
        )
    raw = path.read_bytes()
    if len(raw) > MAX_BYTES:
        raise InputError(f"{printable(path)} has {len(raw):,} bytes, a recipe at most {MAX_BYTES:,}.")
    try:
        values = yaml.load(raw.decode("utf-8-sig"), _Loader)  # noqa: S506 a SafeLoader
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)} is not UTF-8 text: byte {error.start}. Save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{printable(path)} is not a plain YAML recipe: {printable(' '.join(str(error).split()))}. Mend that line."
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"{printable(path)} holds {type(values).__name__}, a recipe is a table of keys such as teacher: and env:."
        )
    return values


def write(path: Path, recipe: Recipe) -> None:
    """The resolved recipe, every key spelled out, ready to be run again."""
    storage.write_text(path, to_yaml(recipe))


def to_yaml(values: Any) -> str:
    """Plain values or dataclasses as YAML; whatever a text holds, it is read back as that text."""
    return str(yaml.safe_dump(storage.plain(values), sort_keys=False, allow_unicode=True))


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ."""
    names = []
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            names.append(f"{prefix}{key}")
    return names
