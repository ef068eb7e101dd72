"""Maps of where in a picture a student looks: a small drawing, and the same in words for who does not see it."""

from __future__ import annotations

import math
from typing import Any

from limbeck.contracts import Looked, RunResult
from limbeck.reporting import words

MOST_MAPS = 24  # on a page: about 3 kB each
MOST_CELLS = 32  # of a map, each way
SIDE = 200  # of the longer side of a drawing
LEVELS = 10  # of a cell's opacity
SLIMMEST = 0.25  # shorter side by longer side


def maps(result: RunResult) -> list[dict[str, Any]]:
    """One entry per picture that a member sees: its name, the drawing, and what is said of it."""
    found: list[dict[str, Any]] = []
    for member in result.members:
        for key, one in member.looks.items():
            if readable(one) and len(found) < MOST_MAPS:
                name = words.public(member.name, 60) + (f", {words.public(key, 40)}" if key else "")
                found.append({"name": name, "svg": drawing(one), "words": said(one)})
    return found


def readable(one: Looked) -> bool:
    """Whether a stored map is one: rows of equal length, shares of 0 or more, some above 0."""
    sizes = {len(row) for row in one.shares}
    if len(sizes) != 1 or not 1 <= len(one.shares) <= MOST_CELLS or not 1 <= sizes.pop() <= MOST_CELLS:
        return False
    cells = [share for row in one.shares for share in row]
    return all(math.isfinite(share) and share >= 0 for share in cells) and sum(cells) > 0


def said(one: Looked) -> str:
    """The map in a sentence, rows from the top and columns from the left.

    >>> said(Looked("", 10, 10, ((0.1, 0.0), (0.6, 0.3)), 64))
    'looks most at row 2, column 1 of 2 x 2 patches (60 % of the influence); half of it lies in 1 of 4, measured in 64 states'
    """
    cells = sorted(((share, -r, -c) for r, row in enumerate(one.shares) for c, share in enumerate(row)), reverse=True)
    (largest, row, column), total = cells[0], sum(share for share, _, _ in cells)
    half, few = 0.0, 0
    while half < total / 2:
        half, few = half + cells[few][0], few + 1
    grid = f"{len(one.shares)} x {len(one.shares[0])} patches"
    return (
        f"looks most at row {1 - row}, column {1 - column} of {grid} ({words.percent(largest / total)} of the influence); "
        f"half of it lies in {few} of {len(cells)}, measured in {words.plural(one.states, 'state')}"
    )


def drawing(one: Looked) -> str:
    """SVG of the grid over the picture's own proportions; the more a patch counts the stronger, the first one outlined.

    >>> drawing(Looked("", 10, 10, ((0.1, 0.0), (0.6, 0.3)), 64)).count("z")
    4
    """
    rows, columns = len(one.shares), len(one.shares[0])
    ratio = min(max(max(one.height, 1) / max(one.width, 1), SLIMMEST), 1 / SLIMMEST)
    wide, high = (SIDE / max(ratio, 1), SIDE * min(ratio, 1))
    across, down = wide / columns, high / rows
    largest = max(share for row in one.shares for share in row)
    levels: dict[int, str] = {}
    outline = ""
    for r, row in enumerate(one.shares):
        for c, share in enumerate(row):
            shape = f"M{c * across:.5g} {r * down:.5g}h{across:.5g}v{down:.5g}h-{across:.5g}z"
            level = round(LEVELS * share / largest)
            if level:
                levels[level] = levels.get(level, "") + shape
            if share == largest and not outline:
                outline = shape
    cells = "".join(f'<path d="{shape}" fill-opacity="{level / LEVELS:g}"/>' for level, shape in sorted(levels.items()))
    return (
        f'<svg class="heat" viewBox="-1 -1 {wide + 2:.5g} {high + 2:.5g}" width="{wide:.5g}" height="{high:.5g}" role="img" '
        f'aria-label="Map of the picture: {said(one)}"><rect width="{wide:.5g}" height="{high:.5g}" fill="var(--panel)" stroke="var(--line)"/>'
        f'<g fill="var(--accent)">{cells}</g><path d="{outline}" fill="none" stroke="var(--ink)" stroke-width="1.5"/></svg>'
    )
