"""The durable data set: one immutable safetensors file per (task, round), mapped into memory, never rewritten.

Rows are stored lane by lane in time order, so the row before a row that is not `first` is the step before it: frames
are stored once and histories are gathered by index. Reset rows never enter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import storage
from limbeck.contracts import Array, Observation
from limbeck.errors import InputError, StorageError

OBS = "obs"  # column prefix: "obs" for arrays, "obs/KEY" for dict observations
FEATURE = "feature"  # column prefix: "feature/LAYER" for layers of the teacher that were captured


@dataclass
class Dataset:
    """All rounds of one task, oldest first."""

    folder: Path
    task: str
    shards: list[dict[str, Array]] = field(default_factory=list)
    meta: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(shard["first"]) for shard in self.shards)

    @property
    def rounds(self) -> int:
        return len(self.shards)

    def add(self, round_number: int, columns: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write round `round_number` (the next one) durably and map it. `columns` must include `first`, all [N, ...]."""
        if round_number != self.rounds:
            raise StorageError(
                f"{self.folder} holds {self.rounds} rounds, round {round_number} does not follow. Start the run in a new --out."
            )
        path = self.path(round_number)
        text = json.dumps(storage.plain({"task": self.task, "round": round_number, **meta}))
        storage.write_arrays(path, columns, {"limbeck": text, "digest": storage.digest(columns, text)})
        self._map(path)

    def column(self, name: str) -> Array:
        """A column of all rounds; with one round a view into the file, else one copy."""
        parts = [shard[name] for shard in self.shards]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def has(self, name: str) -> bool:
        return bool(self.shards) and all(name in shard for shard in self.shards)

    def observations(self) -> Observation:
        """[N, ...] observations as the task gave them."""
        names = [name for name in self.shards[0] if name == OBS or name.startswith(f"{OBS}/")]
        if names == [OBS]:
            return self.column(OBS)
        return {name[len(OBS) + 1 :]: self.column(name) for name in names}

    def first(self) -> NDArray[np.bool_]:
        """[N] rows with no predecessor: episode starts and the first row of every lane and round."""
        return self.column("first")

    def path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:05d}.safetensors"

    def forget_from(self, round_number: int) -> None:
        """Drop rounds that a resumed run will play again."""
        for path in self.folder.glob("round-*.safetensors"):
            if path >= self.path(round_number):
                path.unlink()
        del self.shards[round_number:], self.meta[round_number:]

    def _map(self, path: Path) -> None:
        try:
            arrays, meta = storage.map_arrays(path)
        except InputError as error:
            raise _damaged(path, "it was cut or overwritten") from error
        if meta.get("digest") != storage.digest(arrays, meta.get("limbeck", "")):
            raise _damaged(path, "its content does not match its checksum")
        self.shards.append(arrays)
        self.meta.append(json.loads(meta["limbeck"]))


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"{path} is damaged: {why}. Restore it from a copy, or start the run in a new --out; other rounds are untouched."
    )


def open_dataset(folder: Path, task: str, rounds: int | None = None) -> Dataset:
    """The data set of a task inside a run's `dataset/` folder: the first `rounds` rounds, None: all that are there.

    Later ones are dropped unread, for a resumed run plays them again. Every file is checked against its checksum.
    """
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", task)
    dataset = Dataset(folder / slug, task)
    if rounds is not None:
        dataset.forget_from(rounds)
    found = sorted(dataset.folder.glob("round-*.safetensors"))
    for number in range(len(found) if rounds is None else rounds):
        if dataset.path(number) not in found:
            raise StorageError(f"{dataset.folder} lacks round {number}. Restore it, or start the run in a new --out.")
        dataset._map(dataset.path(number))
    return dataset


def observation_columns(obs: Observation) -> dict[str, Array]:
    """An observation batch as named columns."""
    return {f"{OBS}/{k}": v for k, v in obs.items()} if isinstance(obs, dict) else {OBS: obs}


def history_rows(first: NDArray[np.bool_], history: int) -> NDArray[np.int64]:
    """[N, H] row numbers of the last H steps, oldest first, the episode's first row repeated.

    >>> history_rows(np.array([True, False, False, True]), 2).tolist()
    [[0, 0], [0, 1], [1, 2], [3, 3]]
    """
    rows = np.arange(len(first))
    start = np.maximum.accumulate(np.where(first, rows, 0))
    offsets = np.arange(history - 1, -1, -1)
    return np.maximum(rows[:, None] - offsets, start[:, None])
