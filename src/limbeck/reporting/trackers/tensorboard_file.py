"""TensorBoard's event file, written by PyTorch's writer, which needs the tensorboard package."""

from __future__ import annotations

from pathlib import Path

from limbeck.reporting.trackers import Log, cleared


def write(log: Log, folder: Path) -> str:
    """Curves and final numbers as scalars (`tensorboard --logdir FOLDER`), verdicts as text."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(cleared(folder)))
    try:
        for point in log.points:
            writer.add_scalar(point.name, point.value, point.step)
        for name, value in log.finals.items():
            writer.add_scalar(name, value, 0)
        for name, text in (*log.texts.items(), *((f"settings/{k}", v) for k, v in log.settings.items())):
            writer.add_text(name, f"    {text}")  # indented: shown as it is, not as Markdown
    finally:
        writer.close()
    return f"{folder} (tensorboard --logdir {folder})"
