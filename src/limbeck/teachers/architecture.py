"""The words of --architecture: a network on one line, for weights that do not say how to compute with them.

    divide 10 > conv relu > conv relu > flatten > dense 64 relu > head categorical @pi ; value @v

Steps stand between `>`; each is a word, numbers that are checked against the tensors and may be left out, options:

    obs hwc|chw                                    how the task's picture lies; only where its shape leaves that open
    divide 255                                     the input is divided by it
    history 4                                      the last 4 observations together, oldest first
    conv [CHANNELS] [KxK] [stride=S] [pad=P] [ACTIVATION] [@NAME]
    pool max|mean KxK [stride=S] [pad=P]           stride: that of the window
    flatten [chw|hwc]                              how the weights' own world laid the picture out; chw as torch
    dense [UNITS] [ACTIVATION] [@NAME]
    norm [ACTIVATION] [eps=1e-5] [@NAME]           layer normalisation
    gru|lstm [UNITS] [@NAME]
    head [KIND] [N] [@NAME] [log_std=NAME|NUMBER]  the last step; its layer is a linear one

KIND is categorical, q, multicategorical, bernoulli, gaussian, squashed, tanh or deterministic. `@NAME` is a tensor's
name without `.weight`; without it a step takes the next layer in the file's order. After `;` may follow

    value @NAME  or  value > STEPS                 the critic on what the head sees, ending in one number
    critic > STEPS                                 a critic of its own on the observation
    ignore PATTERN ...                             tensors that are none of the policy's (* stands for anything)

Every tensor needs a place: what is left over is an error, so that a forgotten layer cannot pass unseen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_args

from limbeck.contracts import HeadKind
from limbeck.contracts.layers import ACTIVATIONS
from limbeck.errors import InputError, printable, unknown

EXAMPLE = "divide 255 > conv relu stride=4 > flatten > dense 64 relu > head categorical @pi ; value @v"
MAX_TEXT, MAX_STEPS, MAX_NUMBER = 4000, 200, 2**16
WORDS: dict[str, tuple[str, ...]] = {  # a step's word: options with a value
    "obs": (), "divide": (), "history": (), "conv": ("stride", "pad"), "pool": ("stride", "pad"), "flatten": (),
    "dense": (), "norm": ("eps",), "gru": (), "lstm": (), "head": ("log_std",),
}  # fmt: skip
NAMED = ("conv", "dense", "norm", "gru", "lstm", "head")
_KINDS = get_args(HeadKind)
_ALLOWED = {
    "obs": ("hwc", "chw"), "flatten": ("hwc", "chw"), "pool": ("max", "mean"), "head": _KINDS,
    **dict.fromkeys(("conv", "dense", "norm"), ("none", *ACTIVATIONS)),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step as it was written."""

    text: str
    word: str
    choice: str | None = None  # an activation, a layout, a kind
    number: float | None = None  # channels, units, outputs, a divisor
    window: tuple[int, int] | None = None
    options: tuple[tuple[str, str], ...] = ()
    name: str | None = None  # of a tensor, without .weight

    def option(self, key: str) -> str | None:
        return dict(self.options).get(key)

    def whole(self, key: str, default: int) -> int:
        """An option as a whole number."""
        text = self.option(key)
        if text is None:
            return default
        if not re.fullmatch(r"\d{1,5}", text) or int(text) > MAX_NUMBER:
            raise self.wrong(f"{key}={printable(text, 20)} is no whole number up to {MAX_NUMBER}")
        return int(text)

    def wrong(self, why: str) -> InputError:
        """An error about this step."""
        return InputError(
            f"--architecture: step {printable(self.text, 60)!r}: {why.rstrip('.')}. An architecture reads like '{EXAMPLE}'."
        )


@dataclass(frozen=True)
class Architecture:
    """What an architecture says."""

    steps: tuple[Step, ...]  # of the policy, the last one a head
    value: tuple[Step, ...] = ()  # of the critic
    value_apart: bool = False  # the critic starts from the observation
    ignored: tuple[str, ...] = ()


def parse(text: str) -> Architecture:
    """The architecture that `text` states. Raises InputError that names the step that is wrong.

    >>> [step.word for step in parse("dense 64 tanh > dense 64 tanh > head categorical").steps]
    ['dense', 'dense', 'head']
    """
    if len(text) > MAX_TEXT or text.count(">") > MAX_STEPS:
        raise InputError(
            f"--architecture has {len(text)} letters and {text.count('>')} steps. Allowed: {MAX_TEXT} and {MAX_STEPS}."
        )
    first, *others = [part.strip() for part in text.split(";")]
    steps = tuple(_step(part) for part in first.split(">"))
    for step in steps[:-1]:
        if step.word == "head":
            raise step.wrong("the head is the last step")
    if steps[-1].word != "head":
        raise steps[-1].wrong("the last step is the head")
    value: tuple[Step, ...] = ()
    ignored: tuple[str, ...] = ()
    apart = False
    for part in others:
        word, _, rest = part.partition(" ")
        if word in ("value", "critic") and not value:
            value, apart = _critic(part, rest.strip()), word == "critic"
        elif word == "ignore" and rest.split():
            ignored = (*ignored, *rest.split())
        elif part:
            raise InputError(
                f"--architecture: {printable(part, 60)!r} after a semicolon. Allowed there, once: value ..., critic ...; and ignore PATTERN."
            )
    return Architecture(steps, value, apart, ignored)


def _critic(text: str, rest: str) -> tuple[Step, ...]:
    if rest.startswith("@") and ">" not in rest:
        return (_step(f"dense 1 {rest}"),)
    if not rest.startswith(">"):
        raise InputError(
            f"--architecture: {printable(text, 60)!r}. Allowed: value @NAME, value > STEPS, critic > STEPS."
        )
    steps = tuple(_step(part) for part in rest[1:].split(">"))
    for step in steps:
        if step.word in ("head", "obs", "divide", "history"):
            raise step.wrong(f"a critic has no {step.word}")
    return steps


def _step(text: str) -> Step:
    word, *rest = text.split() or [""]
    if word not in WORDS:
        error = unknown("step in --architecture", word, WORDS)
        raise InputError(f"{error} An architecture reads like '{EXAMPLE}'.")
    step = Step(" ".join(text.split()), word)
    found: dict[str, Any] = {}
    options: list[tuple[str, str]] = []
    for token in rest:
        key, value = _token(step, token)
        if key == "option":
            options.append(value)
        elif key in found:
            raise step.wrong(f"two of the same kind: {printable(token, 30)!r}")
        else:
            found[key] = value
    done = Step(step.text, word, options=tuple(options), **found)
    _check(done)
    return done


def _token(step: Step, token: str) -> tuple[str, Any]:
    """(field of the step, its value) of one word after the first."""
    if token.startswith("@") and len(token) > 1 and step.word in NAMED:
        return "name", token[1:]
    if "=" in token:
        key, _, value = token.partition("=")
        if key not in WORDS[step.word] or not value:
            allowed = ", ".join(f"{k}=" for k in WORDS[step.word]) or "none"
            raise step.wrong(f"option {printable(token, 30)!r} is unknown; options of {step.word}: {allowed}")
        return "option", (key, value)
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", token):
        return "window", (int(match[1]), int(match[2]))
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", token):
        return "number", float(token)
    if token in _ALLOWED.get(step.word, ()):
        return "choice", token
    allowed = ", ".join(_ALLOWED.get(step.word, ())) or "numbers"
    raise step.wrong(f"{printable(token, 30)!r} is unknown; after {step.word} go: {allowed}")


def _check(step: Step) -> None:
    needs_number = step.word in ("divide", "history")
    if needs_number and (step.number is None or step.number <= 0):
        raise step.wrong("a number above 0 is missing")
    if step.number is not None and step.word in ("obs", "pool", "flatten", "norm"):
        raise step.wrong("no number goes here")
    if step.number is not None and step.word != "divide" and step.number != int(step.number):
        raise step.wrong("the number must be a whole one")
    if step.window is not None and (step.word not in ("conv", "pool") or 0 in step.window):
        raise step.wrong("a window such as 3x3 goes with conv and pool alone")
    if step.word == "pool" and (step.window is None or step.choice is None):
        raise step.wrong("pool needs max or mean, and a window such as 2x2")
    if step.word == "obs" and step.choice is None:
        raise step.wrong("obs needs hwc or chw")
