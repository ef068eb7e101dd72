"""An environment that raises, or never returns, becomes a fault."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limbeck.errors import EnvironmentFault, LimbeckError, printable


class Watchdog:
    """Turns a step that never returns into an EnvironmentFault.

    A thread compares a heartbeat with the clock and interrupts the main thread; with `hard_exit` (the command line)
    a hang inside C code, which nothing in Python can interrupt, ends the process with exit code 6.
    """

    limit_seconds = 60.0
    hard_exit = False

    def __init__(self) -> None:
        self._since: float | None = None
        self._what = ""
        self.expired = False
        self._thread: threading.Thread | None = None

    def arm(self, what: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._what, self._since, self.expired = what, time.monotonic(), False
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """The next call begins; a hang that was noticed already stays one."""
        if self._since is not None:
            self._since = time.monotonic()

    def disarm(self) -> None:
        self._since = None

    def fault(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._what} did not return within {self.limit_seconds:g} s. Mend the environment, or allow more with --options task.step_timeout=SECONDS."
        )

    def _watch(self) -> None:
        while True:
            time.sleep(min(0.25, self.limit_seconds / 4))
            since = self._since
            if since is None or time.monotonic() - since < self.limit_seconds:
                continue
            if not self.expired:
                self.expired = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            elif self.hard_exit and time.monotonic() - since > self.limit_seconds + 5:
                sys.stderr.write(f"limbeck: {self.fault()}\n")
                os._exit(EnvironmentFault.exit_code)


watchdog = Watchdog()


@contextmanager
def own_limit() -> Iterator[None]:
    """Whatever limit is set inside ends with the block."""
    before = watchdog.limit_seconds
    try:
        yield
    finally:
        watchdog.limit_seconds = before


@contextmanager
def watched(what: str) -> Iterator[None]:
    """A block that has to end within the limit."""
    watchdog.arm(what)
    try:
        yield
    except KeyboardInterrupt:
        if watchdog.expired:
            raise watchdog.fault() from None
        raise
    finally:
        watchdog.disarm()


@contextmanager
def guarded(name: str, what: str, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """A call into environment `name` that has to end within the limit; whatever it raises becomes an EnvironmentFault
    that says `what` was called and, by `where`, in which episode."""
    with watched(f"{name}.{what}"):
        try:
            yield
        except LimbeckError:
            raise
        except Exception as error:
            raise EnvironmentFault(
                f"{name} raised {type(error).__name__} in {what}{where()}: {printable(error)}. Mend the environment; finished rounds are kept."
            ) from error
