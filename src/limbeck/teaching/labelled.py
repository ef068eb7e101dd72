"""Train a classifier on a labelled set: the teacher of supervised distillation, in plain torch.

A picture gets two convolutions (10 and 20 filters), max pooling after each, a dense layer of 50 and the head; flat rows
get the dense layer alone. On 28 x 28 pixels the filters are 5 x 5 without padding, and 320 numbers arrive at the dense
layer; smaller pictures get 3 x 3 with padding. The weights are those of the epoch with the lowest validation loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from limbeck import blueprints, seeding, spaces
from limbeck.contracts import Blueprint, Conv, Dense, Floats, Head, Layer, Pool
from limbeck.errors import InputError
from limbeck.tasks import DatasetTask

Logits = Callable[[torch.Tensor], torch.Tensor]
WIDE_SIDE = 20  # from here on 5 x 5 filters without padding leave something to pool
WIDE, NARROW = (5, 0), (3, 1)  # side of a filter, padding


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is built and trained."""

    filters: tuple[int, ...] = (10, 20)  # of the convolutions, where rows are pictures
    hidden: tuple[int, ...] = (50,)  # units of the dense layers before the head
    epochs: int = 40
    batch: int = 64
    learning_rate: float = 4e-3  # of Adam
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part came to."""

    number: int  # from 1
    loss: float  # mean over the pass, of the weights as they were then
    validation_loss: float  # after the pass
    validation_accuracy: float  # share of labels right, after the pass


@dataclass(frozen=True)
class Classifier:
    """The trained policy and how it came about."""

    blueprint: Blueprint
    epochs: tuple[Epoch, ...]
    kept: int  # number of the epoch whose weights these are


def train_classifier(
    task: DatasetTask,
    settings: ClassifierSettings = ClassifierSettings(),
    *,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Classifier:
    """Train on the task's training part by cross-entropy (several 0/1 labels: the binary one of each, summed).

    The test part is never looked at. The same seed gives the same weights. Raises InputError for settings that no
    network can be built from.
    """
    _check(settings)
    head = spaces.head_for(task.spec.action_space)
    with _alone(seed):
        network = Network(task, settings, head)
        found = _fit(network, task, head, settings, seed, on_epoch)
    blueprint = network.freeze(task, head)
    blueprints.check(blueprint)
    return Classifier(blueprint, *found)


class Network(nn.Module):
    """The layers, written for torch so that they freeze into plain arrays: pictures are unrolled height, width, channel."""

    def __init__(self, task: DatasetTask, settings: ClassifierSettings, head: Head) -> None:
        super().__init__()
        self.image = task.image if settings.filters else None
        self.convolutions, self.dense = nn.ModuleList(), nn.ModuleList()
        width = int(np.prod(task.inputs.shape[1:]))
        if self.image is not None:
            height, side, channels = self.image
            kernel, padding = WIDE if min(height, side) >= WIDE_SIDE else NARROW
            for filters in settings.filters:
                self.convolutions.append(nn.Conv2d(channels, filters, kernel, padding=padding))
                height, side = ((n + 2 * padding - kernel + 1) // 2 for n in (height, side))
                channels = filters
                if min(height, side) < 1:
                    raise InputError(
                        f"{len(settings.filters)} convolutions leave nothing of a picture of {self.image}. Allowed: fewer filters."
                    )
            width = height * side * channels
        for size in (*settings.hidden, head.width):
            self.dense.append(nn.Linear(width, size))
            width = size

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, ...] observations -> [B, W] logits."""
        x = rows.reshape(len(rows), -1)
        if self.image is not None:
            x = x.reshape(len(rows), *self.image).permute(0, 3, 1, 2)
            for convolution in self.convolutions:
                x = functional.max_pool2d(torch.relu(convolution(x)), 2)
            x = x.permute(0, 2, 3, 1).reshape(len(rows), -1)
        for layer in self.dense[:-1]:
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.dense[-1](x)
        return logits

    def freeze(self, task: DatasetTask, head: Head) -> Blueprint:
        """The same function as plain arrays."""
        layers: list[Layer] = []
        if self.image is not None:
            size = (self.image[0], self.image[1])
            for module in self.convolutions:
                weight = np.ascontiguousarray(_plain(module.weight).transpose(2, 3, 1, 0))
                pad = dict((WIDE, NARROW))[weight.shape[0]]
                convolution = Conv(weight, _plain(module.bias), size, padding=(pad,) * 4, activation="relu")
                pool = Pool(convolution.out_size, int(weight.shape[3]), (2, 2), (2, 2))
                layers += [convolution, pool]
                size = pool.out_size
        for i, module in enumerate(self.dense):
            last = i == len(self.dense) - 1
            weight = np.ascontiguousarray(_plain(module.weight).T)
            layers.append(Dense(weight, _plain(module.bias), "identity" if last else "relu"))
        return Blueprint(task.spec, head, tuple(layers), name="classifier")


# ---------------------------------------------------------------- training


@dataclass
class _Kept:
    """The weights with the lowest validation loss so far."""

    loss: float = float("inf")
    epoch: int = 0
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


def _fit(
    network: Network,
    task: DatasetTask,
    head: Head,
    settings: ClassifierSettings,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[tuple[Epoch, ...], int]:
    inputs, labels = torch.from_numpy(task.inputs), torch.from_numpy(task.labels)
    train, validation = task.part("train"), task.part("validation")
    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    history, kept = [], _Kept()
    for number in range(1, settings.epochs + 1):
        order = torch.from_numpy(seeding.generator(seed, "teach", number).permutation(task.train_rows))
        total = 0.0
        for rows in torch.split(order, settings.batch):
            loss = classification_loss(network(inputs[train][rows]), labels[train][rows], head)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.item() * len(rows)
        with torch.inference_mode():
            said = network(inputs[validation])
            held = float(classification_loss(said, labels[validation], head))
        epoch = Epoch(number, total / task.train_rows, held, _accuracy(said, labels[validation], head))
        history.append(epoch)
        if held < kept.loss:
            kept = _Kept(held, number, copy.deepcopy(network.state_dict()))
        if on_epoch is not None:
            on_epoch(epoch)
    network.load_state_dict(kept.weights)
    return tuple(history), kept.epoch


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Mean cross-entropy of rows [B, W]; logits go in, for torch's function applies the softmax itself."""
    if head.kind == "bernoulli":
        each = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return each.sum(-1).mean()
    return functional.cross_entropy(logits, labels)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor, head: Head) -> float:
    said = (logits > 0).long() if head.kind == "bernoulli" else logits.argmax(-1)
    return float((said == labels).double().mean())


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread and a generator of its own, so that the same seed gives the same weights and nothing else changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seeding.generator(seed, "teach").integers(2**31)))
            yield
    finally:
        torch.set_num_threads(threads)


def _plain(tensor: Any) -> Floats:
    array: Floats = tensor.detach().numpy().copy()
    return array


def _check(settings: ClassifierSettings) -> None:
    counts = [("epochs", settings.epochs), ("batch", settings.batch)]
    counts += [("a layer's size", size) for size in (*settings.filters, *settings.hidden)]
    for name, count in counts:
        if not 1 <= count <= 100_000:
            raise InputError(f"{name} = {count}, allowed 1 to 100,000. Change it.")
    if not 0 < settings.learning_rate <= 10 or not 0 <= settings.weight_decay <= 10:
        raise InputError("learning_rate and weight_decay are out of range. Allowed: above 0 and from 0, at most 10.")
