"""Makes programs that try to create a marker file, and, as positive control, runs them without any confinement.

python program_attacks.py FOLDER
Writes call.pt (TorchScript), pickled.pt2 (torch.export with a pickle among its sample inputs), quiet.pt (TorchScript
that prints, for the pipe) and endless.pt; prints which of the first two created FOLDER/CANARY when used.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
import zipfile
from pathlib import Path

import torch

FOLDER = Path(sys.argv[1])
MARKER = FOLDER / "CANARY"


class Canary:
    def __reduce__(self) -> tuple:
        return open, (str(MARKER), "w")


class WritesOnCall(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] + torch.from_file(self.path, True, 4).sum() * 0


class Prints(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("LMBK", x)
        return x[:, :2]


class Endless(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() < 1e30):
            x = x * 1
        return x[:, :2]


class Greedy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] + torch.ones([1 << 34]).sum() * 0


def evil_pt2() -> Path:
    source, target, buffer = FOLDER / "good.pt2", FOLDER / "pickled.pt2", io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(2, 4),)), source)
    torch.save(Canary(), buffer)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            inside = name.endswith("data/sample_inputs/model.pt")
            new.writestr(name, buffer.getvalue() if inside else old.read(name))
    return target


def fired() -> bool:
    hit = MARKER.exists()
    MARKER.unlink(missing_ok=True)
    return hit


def main() -> None:
    warnings.simplefilter("ignore")
    logging.raiseExceptions = False  # torch's own message about its fallback is badly formatted
    torch.set_num_threads(1)
    for name, module in (("call", WritesOnCall(str(MARKER))), ("quiet", Prints()), ("endless", Endless()), ("greedy", Greedy())):  # fmt: skip
        torch.jit.script(module).save(str(FOLDER / f"{name}.pt"))
    torch.jit.load(str(FOLDER / "call.pt"))(torch.zeros(1, 4))
    print("scripted", fired())
    try:
        torch.export.load(evil_pt2())
    except Exception as error:  # the marker is there by then
        print(type(error).__name__, file=sys.stderr)
    print("exported", fired())


if __name__ == "__main__":
    main()
