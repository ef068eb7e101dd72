"""The family on a terminal: a table that gives up columns, not meaning, when the window is narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.contracts import MemberReport, Proof, RunResult
from limbeck.reporting import words

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2  # blanks between columns
NAME_LIMIT = 24
FORMULA_LIMIT = 2000
STYLES = {"proved": "green", "not proved": "yellow", "undecided": "yellow", "not played": "dim"}


@dataclass(frozen=True)
class Column:
    """One column: its head, its cell for a member, and when it goes (the highest `drop` goes first, 0 never)."""

    head: str
    cell: Callable[[MemberReport], str]
    drop: int


def print_table(result: RunResult, console: Console | None = None) -> None:
    """The members, largest first, then what small trees and rules do, then the headline and the family's error; fits consoles down to 60 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    columns = fitting(result, console.width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        left = column.head in ("student", "verdict (episodes)")
        table.add_column(column.head, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for member in result.members:
        style = STYLES["not played" if member.proof is None else member.proof.verdict]
        cells = [Text(c.cell(member), style=style if c.head.startswith("verdict") else "") for c in columns]
        table.add_row(*cells)
    if result.members:
        console.print(table)
        console.print()
    for member in result.members:
        if member.formula:
            console.print(Text(words.public(f"{member.name}: {member.formula}", FORMULA_LIMIT)))
            console.print()
    console.print(Text(words.unbroken(words.headline(result)), style="bold"))
    if family := words.family(result):
        console.print(Text(words.unbroken(family)))


def fitting(result: RunResult, width: int) -> list[Column]:
    """The columns that fit into `width` characters."""
    columns = _columns(result)
    widths = {c.head: max([len(c.head), *(len(c.cell(m)) for m in result.members)]) + GAP for c in columns}
    while sum(widths[c.head] for c in columns) - GAP > width and any(c.drop for c in columns):
        columns.remove(max(columns, key=lambda c: c.drop))
    return columns


def _columns(result: RunResult) -> list[Column]:
    fastest = fastest_target(result.members)
    columns = [
        Column("student", lambda m: words.public(m.name, NAME_LIMIT), 0),
        Column("numbers", lambda m: words.count(m.parameters), 2),
        Column("size", lambda m: words.size(m.size_bytes), 3),
        Column("mult-adds", lambda m: words.count(m.multiply_adds), 7),
        Column("return", lambda m: of_proof(m, lambda p: words.number(mean(p.student_returns))), 4),
        Column("keeps", lambda m: of_proof(m, lambda p: words.percent(p.retention)), 0),
        Column("at least", lambda m: of_proof(m, lambda p: words.percent_down(p.retention_low)), 1),
        Column("verdict (episodes)", words.verdict, 0),
    ]
    if fastest:
        columns.append(Column(f"{fastest} p50", lambda m: latency(m, fastest), 5))
        columns.append(Column("p99", lambda m: latency(m, fastest, worst=True), 6))
    if any(m.polished for m in result.members):
        columns.append(Column("polished", lambda m: "yes" if m.polished else "", 8))
    return columns


def of_proof(member: MemberReport, cell: Callable[[Proof], str]) -> str:
    return words.NOTHING if member.proof is None else cell(member.proof)


def latency(member: MemberReport, target: str, worst: bool = False) -> str:
    """One step's p50 (or p99) on that target."""
    if target not in member.latency:
        return words.NOTHING
    measured = member.latency[target]
    return words.duration(measured.p99_seconds if worst else measured.p50_seconds)


def fastest_target(members: Sequence[MemberReport]) -> str:
    """The target with the shortest measured step, so that one column tells what to ship; "" without measurements."""
    seconds = [(m.latency[t].p50_seconds, t) for m in members for t in m.latency]
    return min((pair for pair in seconds if math.isfinite(pair[0])), default=(0.0, ""))[1]


def mean(returns: Sequence[float]) -> float:
    return sum(returns) / len(returns) if returns else math.nan
