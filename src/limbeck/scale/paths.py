"""Architectures as paths of small choices; numbers stand for places in the lists of sizes, which grow geometrically."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from limbeck.settings import SearchSettings
from limbeck.spaces import Image
from limbeck.students.grammar import parse

FAMILIES = ("mlp:*", "gru:*", "cnn:*")
LARGE_IMAGE = 32  # pixels of the shorter side from which first convolutions take large steps
KERNELS = {True: ("8s4", "6s3"), False: ("3",)}  # first convolution of large and small images
REST = {True: "4s2", False: "3"}  # the next one
COMPACT = (0, 2, 4)  # channels of the 1x1 convolution before the readout; 0: none
Step = tuple[str, int | str]  # parameter, value
Route = tuple[Step, ...]


def paths(students: Sequence[str], settings: SearchSettings, image: Image | None) -> Iterator[tuple[Route, str]]:
    """Every architecture of some families and exact students as choices."""
    for student in students:
        begin: Route = (("student", student),)
        if student not in FAMILIES:
            yield begin, parse([student])[0].architecture.spec
            continue
        if student == "cnn:*":
            yield from _cnns(settings, begin, image)
        else:
            yield from (_mlps if student == "mlp:*" else _grus)(settings, begin)


def _mlps(settings: SearchSettings, begin: Route) -> Iterator[tuple[Route, str]]:
    for depth in settings.depths:
        for places in itertools.product(range(len(settings.widths)), repeat=depth):
            sizes = "x".join(str(settings.widths[i]) for i in places)
            steps = tuple((f"mlp{depth}.width{n}", i) for n, i in enumerate(places))
            yield from _activated(settings, (*begin, ("mlp.depth", depth), *steps), f"mlp:{sizes}")


def _grus(settings: SearchSettings, begin: Route) -> Iterator[tuple[Route, str]]:
    for place, width in enumerate(settings.widths):
        yield (*begin, ("gru.width", place)), f"gru:{width}"


def _cnns(settings: SearchSettings, begin: Route, image: Image | None) -> Iterator[tuple[Route, str]]:
    assert image is not None  # refused before, where there is none
    large = min(image.height, image.width) >= LARGE_IMAGE
    for depth in [d for d in settings.depths if d <= 2] or [1]:
        choices = [range(len(settings.filters))] * depth
        for first, compact, dense, *places in itertools.product(
            range(len(KERNELS[large])), range(len(COMPACT)), range(len(settings.widths) + 1), *choices
        ):
            kernels = [KERNELS[large][first], REST[large]]
            parts = "-".join(f"{settings.filters[i]}k{kernels[n]}" for n, i in enumerate(places))
            readout = [f"cp{COMPACT[compact]}"] * bool(compact) + [
                str(settings.widths[dense - 1]) for _ in range(min(dense, 1))
            ]
            steps = tuple((f"cnn{depth}.filters{n}", i) for n, i in enumerate(places))
            path = (
                *begin,
                ("cnn.depth", depth),
                ("cnn.first", first),
                *steps,
                ("cnn.compact", compact),
                ("cnn.dense", dense),
            )
            yield from _activated(settings, path, ":".join(["cnn", parts, *["-".join(readout)] * bool(readout)]))


def _activated(settings: SearchSettings, path: Route, stem: str) -> Iterator[tuple[Route, str]]:
    for activation in settings.activations:
        yield (*path, ("activation", activation)), parse([f"{stem}:{activation}"])[0].architecture.spec
