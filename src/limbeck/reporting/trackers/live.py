"""Trackers that follow a run while it goes on; whatever happens to them, the run goes on.

A tracker is opened by the first line that the run adds, with every line that metrics.jsonl holds then: so a run that was
killed and continued leaves what a run that was never stopped leaves. One that fails is told in one line and given nothing
more; when the run is over, `limbeck report RUN --to NAME` writes it whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.errors import LimbeckError, printable
from limbeck.reporting.trackers import AGAIN, Feed, begin, lines_of, log_of

Tell = Callable[[str, str], None]  # (stage, what happened)


class Live:
    """What a run tells of its metrics, for each tracker that still takes it; without any, nothing is imported or done."""

    def __init__(self, run: Path, names: Sequence[str], tell: Tell) -> None:
        self._run, self._tell = run, tell
        self._names = list(dict.fromkeys(names))  # those that did not fail
        self._feeds: dict[str, Feed] = {}

    def added(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines that metrics.jsonl holds from now on."""
        for name in list(self._names):
            with self._alone(name):
                if name in self._feeds:
                    self._feeds[name].add(lines_of(rows))
                else:
                    self._tell("report", f"{name}, as it goes: {self._opened(name).place}")

    def dropped(self) -> None:
        """Lines went from metrics.jsonl, to be added again: every tracker begins anew with the next line."""
        self.close()

    def finished(self) -> None:
        """The run is over and its result written: finals, texts and files follow."""
        for name in list(self._names):
            with self._alone(name):
                feed = self._feeds.get(name) or self._opened(name)
                feed.finish(log_of(self._run))
                self._tell("report", f"{name}: {feed.place}")
        self.close()

    def close(self) -> None:
        """Let go of all of them."""
        for name, feed in list(self._feeds.items()):
            with self._alone(name):
                feed.close()
        self._feeds.clear()

    def _opened(self, name: str) -> Feed:
        """A feed with every line so far."""
        self._feeds[name] = feed = begin(self._run, name)
        feed.add(lines_of(storage.read_metrics(self._run)))
        return feed

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """An error of a tracker, of whatever library and kind, ends that tracker alone."""
        try:
            yield
        except Exception as error:
            self._names.remove(name)
            if (feed := self._feeds.pop(name, None)) is not None:
                with contextlib.suppress(Exception):  # it fails again for the reason that is told below
                    feed.close()
            told = str(error) if isinstance(error, LimbeckError) else f"{type(error).__name__}: {error}"
            again = "" if AGAIN in told else f". {AGAIN}"
            self._tell("report", f"{name} is given nothing more: {printable(told + again, 600)}")


@contextlib.contextmanager
def following(run: Path, names: Sequence[str], tell: Tell) -> Iterator[Live]:
    """The trackers of a run, let go of however it ends."""
    live = Live(run, names, tell)
    try:
        yield live
    finally:
        live.close()
