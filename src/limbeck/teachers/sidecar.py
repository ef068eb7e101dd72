"""The JSON file beside a teacher (`<stem>.json`, as `limbeck teach` writes it) that states what return to expect."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.contracts import TeacherInfo
from limbeck.errors import printable

MAX_BYTES = 2**20
_OTHERS = ("return", "mean_return", "mean_reward")  # what other tools call it


def with_sidecar(info: TeacherInfo, path: Path) -> TeacherInfo:
    """`info` with the stated return, where the file itself states none and a sidecar of exactly this file does."""
    sidecar = path.with_suffix(".json")
    if "return" in info.stated or not sidecar.is_file():
        return info
    try:
        with sidecar.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        values = json.loads(content) if len(content) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return _noted(info, f"{printable(sidecar.name)} beside it is no readable JSON and was ignored")
    if len(content) > MAX_BYTES:
        return _noted(info, f"{printable(sidecar.name)} beside it is larger than {MAX_BYTES >> 20} MiB and was ignored")
    if not isinstance(values, dict):
        return info
    if values.get("sha256", info.sha256) != info.sha256:
        return _noted(info, f"{printable(sidecar.name)} beside it speaks of another file and was ignored")
    stated = _stated(values)
    return info if stated is None else replace(info, stated={**info.stated, "return": stated})


def _stated(values: dict[str, Any]) -> Any:
    if _number(values.get("stated_return")):
        pairs = {"mean": values["stated_return"], "low": values.get("stated_low")}
        return {key: float(value) for key, value in pairs.items() if _number(value)}
    return next((float(values[key]) for key in _OTHERS if _number(values.get(key))), None)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _noted(info: TeacherInfo, note: str) -> TeacherInfo:
    return replace(info, notes=(*info.notes, note))
