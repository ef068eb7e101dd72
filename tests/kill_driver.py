"""`python kill_driver.py POINT VERB ...`: the real command line, killed by SIGKILL at an exact point of its work.

POINT is one of
    before:TEXT:N    the N-th file whose path holds TEXT is written aside, not yet renamed
    torn:TEXT:N      the same, with only half of its bytes there
    after:TEXT:N     it was renamed
    play:N           the N-th batch of episodes begins (racing, choosing, polishing, bounds, proof)
    write:N          the N-th file in the folder behind --out is written aside

With UNFILMED in its environment it makes no film, as the tests that patch filming away in their own process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from limbeck import cli, reporting, rollout


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(wanted: int, act: Callable[[], None]) -> Callable[[], None]:
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == wanted:
            act()

    return count


def kill_at_write(when: str, text: str, number: int) -> None:
    replace = os.replace
    count = counted(number, die)

    def watched(source: Any, target: Any) -> None:
        matches = text in str(target)
        if matches and when == "torn":
            os.truncate(source, os.path.getsize(source) // 2)
        if matches and when == "after":
            replace(source, target)
        if matches:
            count()
        if not (matches and when == "after"):
            replace(source, target)

    os.replace = watched


def kill_at_play(number: int) -> None:
    play = rollout.play
    count = counted(number, die)

    def watched(*arguments: Any, **named: Any) -> Any:
        count()
        return play(*arguments, **named)

    rollout.play = watched


if __name__ == "__main__":
    if "UNFILMED" in os.environ:
        from end_to_end_cases import no_film

        reporting.side_by_side = no_film
    kind, *rest = sys.argv[1].split(":")
    if kind == "play":
        kill_at_play(int(rest[0]))
    elif kind == "write":
        kill_at_write("before", sys.argv[sys.argv.index("--out") + 1], int(rest[0]))
    else:
        kill_at_write(kind, rest[0], int(rest[1]))
    sys.exit(cli.main(sys.argv[2:]))
