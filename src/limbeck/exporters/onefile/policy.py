"""The player inside a one-file policy. It ends up word for word in policy.py, with the arithmetic of `runtimes.numpy`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from limbeck.contracts import Array, Floats
from limbeck.distributions import execute, greedy, masked
from limbeck.packing import signed
from limbeck.runtimes.numpy import normalised, stepped, windowed
from limbeck.spaces import within


class Player:
    """A whole policy: observation in, executed action out; it remembers what it has to from step to step."""

    def __init__(self, described: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self.described = described
        head = described["head"]
        bounds = {key: [float(v) for v in head[key]] for key in ("low", "high")}
        self._head: Any = SimpleNamespace(**{**head, **bounds})
        self._view: Any = SimpleNamespace(**described["view"])
        self._norm: Any = None
        if described["normaliser_clip"] is not None:
            mean, scale, clip = (arrays["normaliser.mean"], arrays["normaliser.scale"], described["normaliser_clip"])
            self._norm = SimpleNamespace(mean=mean, scale=scale, clip=float(clip))
        self._layers = [_layer(layer, f"layers.{i}", arrays) for i, layer in enumerate(described["layers"])]
        self.reset()

    def reset(self) -> None:
        """Forget: call it before the first observation of every episode."""
        self._memory, self._first = self.initial(1), np.ones(1, bool)

    def step(self, obs: Any) -> Any:
        """The action for one observation, as the environment wants it: an int, or an array of its own number type."""
        params, self._memory = self.said(*flat_row(obs, self.described["parts"]), self._memory, self._first)
        self._first = np.zeros(1, bool)
        return self.received(self.executed(params)[0])

    def initial(self, batch: int) -> dict[str, Array]:
        """Memory for so many fresh rows."""
        sizes: Mapping[str, int] = self.described["memory"]
        return {name: np.zeros((batch, size), np.float32) for name, size in sizes.items()}

    def said(self, x: Floats, mask: Any, memory: Mapping[str, Array], first: Array) -> tuple[Floats, dict[str, Array]]:
        """[B, W] what the policy says to rows [B, O] as `flat_row` makes them, and its memory after them."""
        after: dict[str, Array] = {}
        x = x if self._view.indices is None else np.ascontiguousarray(x[:, list(self._view.indices)])
        x = x if self._norm is None else normalised(self._norm, x)
        if self._view.history > 1:
            size = x.shape[1]
            x = windowed(x, memory["history"], first, self._view)
            after["history"] = x[:, size:]
        for i, layer in enumerate(self._layers):
            x = stepped(layer, f"{layer.kind}{i}", x, memory, after, first)
        return (x if mask is None else masked(x, mask)), after

    def executed(self, params: Floats) -> Array:
        """[B, ...] the actions that rows of W numbers stand for: whole numbers, or float32."""
        return execute(self._head, greedy(self._head, params))

    def received(self, action: Array) -> Any:
        """One executed action as the environment reads it. Raises ValueError for numbers that are none."""
        if np.isnan(action).any():
            raise ValueError("the policy says an action that is not a number: an observation is not finite.")
        box = self.described["box"]
        if box is not None:
            low, high = (_bounds(box[key], box["dtype"]).reshape(box["shape"]) for key in ("low", "high"))
            return within(action, low, high)
        return int(action) if action.ndim == 0 else action.astype(self.described["action_dtype"])


def _bounds(values: Sequence[Any], dtype: str) -> Array:
    """Bounds in their own type; whole ones are written as such, since 2**63 - 1 is no float."""
    return np.array([v if isinstance(v, int) else float(v) for v in values], dtype)


def flat_row(obs: Any, parts: Sequence[Mapping[str, Any]]) -> tuple[Floats, Any]:
    """[1, O] float32 from one observation (an array, a number or a dict of them), and its action mask [1, W] or None.

    Raises ValueError for an observation that does not have the parts' keys and sizes.
    """
    rows: list[Floats] = []
    mask, read = None, dict.fromkeys((part["key"] for part in parts), 0)
    for part in parts:
        key, kind, count = part["key"], part["kind"], part["count"]
        values = np.asarray(obs[key] if key else obs).reshape(-1)
        wanted = sum(1 if p["kind"] == "one-hot" else p["count"] for p in parts if p["key"] == key)
        if values.size != wanted:
            raise ValueError(f"the observation {key!r} holds {values.size} numbers. Allowed: {wanted}.")
        if kind == "action mask":
            mask = values[None] > 0
        elif kind == "one-hot":
            value, start = int(values[read[key]]), part["start"]
            if not start <= value < start + count:
                raise ValueError(f"the observation {key!r} holds {value}. Allowed: {start} to {start + count - 1}.")
            rows.append(np.eye(count, dtype=np.float32)[value - start])
            read[key] += 1
        else:
            rows.append(values.astype(np.float32))
    return np.concatenate(rows)[None], mask


def stored(listed: Sequence[tuple[str, Sequence[int], str]], content: bytes) -> dict[str, Array]:
    """Arrays (name, shape, number type) that lie one after the other."""
    arrays: dict[str, Array] = {}
    at = 0
    for name, shape, dtype in listed:
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    return arrays


def _layer(described: Mapping[str, Any], place: str, arrays: Mapping[str, Array]) -> SimpleNamespace:
    """A layer's numbers by name, those of the layers inside it included."""
    found = SimpleNamespace(**described)
    for name in described["arrays"]:
        setattr(found, name, arrays[f"{place}.{name}"].astype(np.float32))
    for name, shape in described.get("shapes", {}).items():
        setattr(found, name, signed(arrays[f"{place}.{name}"], described["packed"], shape))
    if "layers" in described:
        found.layers = [_layer(inner, f"{place}.layers.{i}", arrays) for i, inner in enumerate(described["layers"])]
    if "branches" in described:
        found.branches = [
            [_layer(inner, f"{place}.branches.{k}.{i}", arrays) for i, inner in enumerate(branch)]
            for k, branch in enumerate(described["branches"])
        ]
    if "sums" in described:  # of trees and rules
        places = np.array(described["sums"], np.int64)
        found.terms = SimpleNamespace(place=places, weight=arrays[f"{place}.terms"], filled=described["filled"])
    return found
