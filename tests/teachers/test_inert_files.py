"""Files of real libraries: the same arrays, bit for bit, as torch.load(weights_only=True) gives."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from hostile_cases import FIXTURES

from limbeck.teachers import inert

FIXED = sorted(
    path.name
    for pattern in (
        "sb3_*.zip",
        "sb3old_*.zip",
        "contrib_*.zip",
        "rslrl_*.pt",
        "torch_state_dict.pt",
        "*.cleanrl_model",
    )
    for path in FIXTURES.glob(pattern)
)


def compared(ours: object, theirs: object) -> int:
    """How many tensors were equal bit for bit; every one must be, and all else equal."""
    if isinstance(theirs, torch.Tensor):
        other = theirs.detach().numpy()
        assert isinstance(ours, np.ndarray)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (other.dtype, other.shape, other.tobytes())
        return 1
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        return sum(compared(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        return sum(compared(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours == theirs
    return 0


def test_there_are_files_of_every_maker() -> None:
    assert len(FIXED) > 40


@pytest.mark.parametrize("name", FIXED)
def test_real_files_bit_for_bit_as_torch_loads_them(name: str) -> None:
    """Stable-Baselines3, sb3-contrib, rsl_rl, CleanRL: each array equals that of torch.load(weights_only=True)."""
    content = (FIXTURES / name).read_bytes()
    contents = [content]
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            contents = [archive.read(member) for member in archive.namelist() if member.endswith(".pth")]
    tensors = 0
    for part in contents:
        theirs = torch.load(io.BytesIO(part), weights_only=True, map_location="cpu")
        tensors += compared(inert.read_torch_zip(part, name), theirs)
    assert tensors > 0
