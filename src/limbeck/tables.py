"""What minibatches are gathered from: a task's data set with the view, the normaliser and the history applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Floats, Head, Normaliser, Observation, Range, View
from limbeck.dataset import OBS, Dataset, history_rows
from limbeck.students.port import Port, scaled
from limbeck.tasks import take_rows

CHUNK = 1 << 19  # numbers that are floats at once while statistics are taken: they fit a processor's cache


@dataclass(frozen=True)
class Table:
    """A task's data set as minibatches are gathered from it."""

    task: str
    inputs: torch.Tensor | Frames  # [N, O * H] view, normaliser and history applied; or frames, to which they will be
    first: torch.Tensor  # [N] bool
    labels: Mapping[str, torch.Tensor]  # "params" [N, W], "hard" [N], "allowed" [N, W] bool
    scalars: Mapping[str, torch.Tensor]  # "temperature" []
    head: Head  # the teacher's
    held: torch.Tensor | None = None  # [N] bool: rows kept out of training; None: none

    @property
    def rows(self) -> int:
        return len(self.first)

    @cached_property
    def training(self) -> torch.Tensor | None:
        """[n] numbers of the rows that are trained on; None: all."""
        return None if self.held is None else torch.nonzero(~self.held)[:, 0].to(torch.int32)

    def gather(self, index: torch.Tensor, pixels: bool, shift: NDArray[np.int64] | None = None) -> torch.Tensor:
        """Rows [...] -> inputs [..., O * H]; `pixels` as in `students.Stack`, `shift` [..., 2] moves pictures."""
        if isinstance(self.inputs, Frames):
            return self.inputs.gather(index, pixels, shift)
        return self.inputs.index_select(0, index) if index.ndim == 1 else self.inputs[index]


@dataclass(frozen=True)
class Frames:
    """Observations as they lie in the files, each once: minibatches are gathered, converted and scaled from them.

    A frame of bytes stays bytes: 100,000 of 84 x 84 are 0.7 GB in the page cache, as floats with a history of four
    they would be 11 GB of memory.
    """

    shards: tuple[Observation, ...]  # one per round, mapped
    begins: NDArray[np.int64]  # [rounds + 1] first row of each round
    port: Port
    normaliser: Normaliser
    pixels: Normaliser | None  # for convolutional students; None where the view has no image for them
    history: NDArray[np.int64] | None  # [N, H] as `history_rows`

    def gather(self, index: torch.Tensor, pixels: bool, shift: NDArray[np.int64] | None = None) -> torch.Tensor:
        """[...] row numbers -> [..., O * H] float32, oldest frame first; `shift` [..., 2] pixels down and right, the same
        for all frames of a row, moves them before anything is scaled."""
        normaliser = self.pixels if pixels else self.normaliser
        if normaliser is None:
            raise ValueError("a convolutional student on observations without an image")
        wanted = index.numpy().reshape(-1)
        rows = wanted if self.history is None else self.history[wanted].reshape(-1)
        frames = self._flat(rows)
        if shift is not None:
            view = replace(self.port.view, history=1)
            moves = np.repeat(shift.reshape(-1, 2), self.port.view.history, axis=0)
            frames = shifted(frames, moves, spaces.image_of(self.port.spec.observation_space, view))
        flat = torch.from_numpy(frames)
        if normaliser.mean.any():
            flat.sub_(torch.from_numpy(normaliser.mean))
        flat.div_(torch.from_numpy(normaliser.scale))
        if self.history is not None:
            flat = flat.reshape(len(wanted), self.port.view.history, -1)
            if self.port.view.padding == "zero":
                flat[torch.from_numpy(_missing(wanted, self.history[wanted]))] = 0.0
        return flat.reshape(*index.shape, -1)

    def _flat(self, rows: NDArray[np.int64]) -> Floats:
        """[N] row numbers of all rounds -> [N, O] float32."""
        space, view = self.port.spec.observation_space, self.port.view
        shard = np.searchsorted(self.begins, rows, side="right") - 1
        flat = np.empty((len(rows), spaces.flat_size(space, view)), np.float32)
        for number in np.unique(shard):
            mine = np.flatnonzero(shard == number)
            flat[mine] = spaces.flatten(take_rows(self.shards[number], rows[mine] - self.begins[number]), space, view)
        return flat


def shifted(frames: Floats, moves: NDArray[np.int64], image: spaces.Image) -> Floats:
    """Pictures moved by whole pixels, their edges repeated (Kostrikov et al. 2020, arXiv:2004.13649).

    frames [N, O] whose stretch `image` is one picture, moves [N, 2] pixels down and right -> [N, O], the rest as it was.
    """
    height, width, channels = image.height, image.width, image.channels
    first = image.layout == "chw"
    pictures = frames[:, image.begin : image.end]
    pictures = pictures.reshape(-1, *((channels, height, width) if first else (height, width, channels)))
    down = np.clip(np.arange(height) - moves[:, :1], 0, height - 1)[:, :, None]  # [N, H, 1]
    right = np.clip(np.arange(width) - moves[:, 1:], 0, width - 1)[:, None, :]  # [N, 1, W]
    which = np.arange(len(frames))[:, None, None]
    moved = pictures[which, :, down, right].transpose(0, 3, 1, 2) if first else pictures[which, down, right]
    whole = frames.copy()
    whole[:, image.begin : image.end] = moved.reshape(len(frames), -1)
    return whole


def _missing(rows: NDArray[np.int64], history: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N, H] places of rows' histories [N, H] that lie before their episode's start."""
    steps = np.arange(history.shape[1] - 1, -1, -1)
    found: NDArray[np.bool_] = history != rows[:, None] - steps
    return found


def _stays_in_files(dataset: Dataset, port: Port) -> bool:
    """Bytes would grow fourfold as floats, and images wait for either of two scalings; other floats are prepared once."""
    seen = _seen(dataset.shards[0], port.view)
    parts = seen.values() if isinstance(seen, dict) else [seen]
    return any(part.dtype.itemsize == 1 for part in parts) or spaces.has_image(
        port.spec.observation_space, port.view, port.agents
    )


def _seen(shard: Mapping[str, Array], view: View) -> Observation:
    """A round's observations, without the keys that the view does not name."""
    if OBS in shard:
        return shard[OBS]
    keys = [name[len(OBS) + 1 :] for name in shard if name.startswith(f"{OBS}/")]
    return {key: shard[f"{OBS}/{key}"] for key in keys if key in (view.keys or keys) and key != view.mask}


def _chunks(dataset: Dataset, port: Port) -> Iterator[Floats]:
    """All flat observations [n, O], some rows at a time."""
    many = max(1, CHUNK // (port.inputs // port.view.history))
    for shard in dataset.shards:
        seen, rows = _seen(shard, port.view), len(shard["first"])
        for begin in range(0, rows, many):
            part = take_rows(seen, slice(begin, min(begin + many, rows)))
            yield spaces.flatten(part, port.spec.observation_space, port.view)


def range_of(dataset: Dataset, port: Port) -> Range | None:
    """The least and the greatest value of every number of the flat observation, None without rows."""
    ends = [(chunk.min(axis=0), chunk.max(axis=0)) for chunk in _chunks(dataset, port)]
    if not ends:
        return None
    return Range(np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0))


def normaliser_of(dataset: Dataset, port: Port) -> Normaliser:
    """Mean and standard deviation of the flat observations seen so far; 1 where a number never changed.

    Many agents share one network and so one normaliser: its numbers are of all agents' rows, once per agent.
    """
    if _stays_in_files(dataset, port):
        mean, spread = _moments(dataset, port)
    else:
        flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view).astype(np.float64)
        flat = flat.reshape(len(flat) * port.agents, -1)
        mean, spread = flat.mean(axis=0), flat.std(axis=0)
    mean, scale = np.tile(mean, port.agents), np.tile(np.where(spread > 1e-6, spread, 1.0), port.agents)
    return Normaliser(mean.astype(np.float32), scale.astype(np.float32))


def _moments(dataset: Dataset, port: Port) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation in one pass, about the first row, so that nothing cancels."""
    about = next(_chunks(dataset, port)).reshape(-1, port.row // port.view.history)[0].astype(np.float64)
    count, total, square = 0, np.zeros_like(about), np.zeros_like(about)
    for chunk in _chunks(dataset, port):
        rows = chunk.reshape(-1, len(about)) - about
        count, total, square = count + len(rows), total + rows.sum(axis=0), square + np.einsum("no,no->o", rows, rows)
    mean = total / count
    return about + mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))


def table(
    dataset: Dataset,
    port: Port,
    teacher_head: Head,
    normaliser: Normaliser,
    temperature: float,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Table:
    """Everything collected so far, ready to be gathered from.

    `extra`: what losses need beyond the teacher's rows, one per row of the data set ("advantage" [N, A] ...) or, without
    dimensions, one for all ("gap" ...)."""
    first = np.asarray(dataset.first())
    labels = {"params": torch.from_numpy(np.array(dataset.column("teacher/params")))}
    if dataset.has("hard"):
        labels["hard"] = torch.from_numpy(np.array(dataset.column("hard")))
    if port.view.mask is not None:
        allowed = np.asarray(dataset.column(f"{OBS}/{port.view.mask}"))
        labels["allowed"] = torch.from_numpy(allowed.reshape(len(allowed), -1) > 0)
    scalars = {"temperature": torch.tensor(temperature)}
    for name, value in (extra or {}).items():
        (labels if value.ndim else scalars)[name] = value
    inputs = (_frames if _stays_in_files(dataset, port) else _prepared)(dataset, port, first, normaliser)
    return Table(dataset.task, inputs, torch.from_numpy(np.array(first)), labels, scalars, teacher_head)


def _frames(dataset: Dataset, port: Port, first: NDArray[np.bool_], normaliser: Normaliser) -> Frames:
    counts = [len(shard["first"]) for shard in dataset.shards]
    image = spaces.has_image(port.spec.observation_space, port.view, port.agents)
    return Frames(
        tuple(_seen(shard, port.view) for shard in dataset.shards),
        np.cumsum([0, *counts]),
        port,
        normaliser,
        scaled(normaliser, port) if image else None,
        history_rows(first, port.view.history) if port.view.history > 1 else None,
    )


def _prepared(dataset: Dataset, port: Port, first: NDArray[np.bool_], normaliser: Normaliser) -> torch.Tensor:
    flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view)
    flat = (flat - normaliser.mean) / normaliser.scale
    if port.view.history > 1:
        index = history_rows(first, port.view.history)
        flat = flat[index]
        if port.view.padding == "zero":
            flat[_missing(np.arange(len(index)), index)] = 0.0
        flat = flat.reshape(len(flat), -1)
    return torch.from_numpy(flat.astype(np.float32))
