"""What a task feeds a student and expects of it, and which students can serve it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces as gs

from limbeck import spaces
from limbeck.contracts import Head, Normaliser, Spec, View
from limbeck.errors import InputError
from limbeck.students.grammar import Architecture


@dataclass(frozen=True)
class Port:
    """A task's side of a student."""

    spec: Spec
    view: View
    head: Head  # of the student
    inputs: int  # O times history, of all agents
    agents: int = 1  # one network serves each of so many equal stretches of the input row and of the head's row

    @property
    def row(self) -> int:
        """How many numbers the network takes."""
        return self.inputs // self.agents

    @property
    def says(self) -> int:
        """How many numbers the network gives."""
        return self.head.width // self.agents


def check_port(port: Port, architecture: Architecture) -> None:
    """Refuse masks and agents that do not fit the head, the observation or the architecture."""
    space, view, head = port.spec.observation_space, port.view, port.head
    if view.mask is not None:
        spaces.check_view(space, view)
        width = math.prod(space[view.mask].shape or ()) if isinstance(space, gs.Dict) else 0
        if not head.discrete or width != head.width:
            raise InputError(
                f"the view's action mask {view.mask!r} holds {width} numbers for a {head.kind} head of {head.width}. "
                "Allowed: one number per action of a discrete head. Name another key, or drop the mask."
            )
    if port.agents == 1:
        return
    if architecture.recurrent or view.history > 1:
        raise InputError(
            f"student {architecture.spec!r} with history {view.history} keeps memory, and {port.agents} agents share it. "
            "Allowed for many agents: linear, mlp and cnn without gru, history 1."
        )
    if isinstance(space, gs.Dict) and len(view.keys or [k for k in space.spaces if k != view.mask]) > 1:
        raise InputError(
            f"the parts of {space} do not lie agent by agent. Pick one part with keys, its first dimension the agents."
        )
    if not _divides(head, port.agents) or port.inputs % port.agents:
        raise InputError(
            f"{port.inputs} numbers and a {head.kind} head of {head.sizes} do not divide among {port.agents} agents. "
            "Allowed: equal shares of a multicategorical, bernoulli, deterministic or tanh head."
        )


def _divides(head: Head, agents: int) -> bool:
    if agents < 1:
        return False
    if head.kind == "multicategorical":
        return head.sizes == head.sizes[: len(head.sizes) // agents] * agents
    return head.kind in ("bernoulli", "deterministic", "tanh") and head.width % agents == 0


def scaled(normaliser: Normaliser, port: Port) -> Normaliser:
    """The normaliser of a convolutional student's inputs: the image divided by its range, the rest as given."""
    image = spaces.image_of(port.spec.observation_space, port.view, port.agents)
    end = image.begin + (image.end - image.begin) // port.view.history
    pixels = slice(None) if port.agents > 1 else slice(image.begin, end)
    mean, scale = normaliser.mean.copy(), normaliser.scale.copy()
    mean[pixels], scale[pixels] = 0.0, np.float32(image.scale)
    return Normaliser(mean, scale)
