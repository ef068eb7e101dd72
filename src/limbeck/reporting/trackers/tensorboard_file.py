"""TensorBoard's event file: records as PyTorch makes them, which needs the tensorboard package.

PyTorch's own writer is not used: it writes in a thread of its own, where an error (a full disk) ends in a trace on the
terminal and is met only later. Here every line is in the file when `add` returns, or the call fails.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from limbeck.reporting.trackers import Line, Log, cleared


class EventFile:
    """The one file of a run in its folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self.place = f"{folder} (tensorboard --logdir {folder})"
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"  # as it looks for
        self._event, self._make = Event, cast(Any, summary)  # neither has types
        self._file = RecordWriter((cleared(folder) / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._file.flush()

    def add(self, lines: Sequence[Line]) -> None:
        """Every number as a scalar."""
        for line in lines:
            for point in line:
                self._write(step=point.step, summary=self._make.scalar(point.name, point.value))
        self._file.flush()

    def finish(self, log: Log) -> None:
        """Final numbers as scalars, verdicts and settings as text."""
        for name, value in log.finals.items():
            self._write(step=0, summary=self._make.scalar(name, value))
        for name, told in (*log.texts.items(), *((f"settings/{k}", v) for k, v in log.settings.items())):
            self._write(summary=self._make.text(name, f"    {told}"))  # indented: shown as it is, not as Markdown
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())


def begin(name: str, folder: Path) -> EventFile:
    """A new event file in place of earlier ones: `tensorboard --logdir FOLDER` shows it as it grows."""
    return EventFile(folder)
