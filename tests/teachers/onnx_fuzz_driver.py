"""Mutates ONNX files COUNT times each and gives all to load and inspect; run as a child, so that a crash is a failure.

python onnx_fuzz_driver.py SEED COUNT FILE...
Prints one line per surprise, then a summary: surprises, seconds of the slowest, MiB at the peak, files written.
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import gymnasium as gym
import numpy as np

from limbeck.contracts import Spec
from limbeck.errors import LimbeckError
from limbeck.teachers import formats
from limbeck.teachers.files import File, Given

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    match int(rng.integers(6)):
        case 0:
            return bytes(data[: int(rng.integers(len(data)))])
        case 1:
            for _ in range(int(rng.integers(1, 9))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case 2:
            at = int(rng.integers(len(data)))
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        case 3:
            begin, end = sorted(int(i) for i in rng.integers(len(data), size=2))
            del data[begin : min(end, begin + 64)]
        case 4:
            begin, to = (int(i) for i in rng.integers(len(data) - 32, size=2))
            data[to : to + 32] = data[begin : begin + 32]
        case _:
            at = int(rng.integers(len(data)))
            data[at : at + 9] = bytes(rng.choice([[255] * 9, [128] * 8 + [1], [0] * 9]))
    return bytes(data)


def main() -> None:
    rng, count, paths = np.random.default_rng(int(sys.argv[1])), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    surprises, slowest, opened = 0, 0.0, []
    sys.addaudithook(
        lambda event, given: opened.append(given[0]) if event == "open" and (given[2] or 0) & WRITING else None
    )
    for path, number in itertools.product(paths, range(count)):
        spec = Spec(gym.spaces.Box(-5, 5, (2 if "gru" in path.name else 4,)), gym.spaces.Discrete(2))
        file = File(path, mutated(path.read_bytes(), rng))
        began = time.monotonic()
        try:
            _, format_ = formats.of(file)
            format_.inspect(file)
            format_.load(file, Given(spec))
        except LimbeckError as error:
            if "\n" in str(error):
                surprises += 1
                print(f"{path.name} {number}: two lines: {error}")
        except BaseException as error:  # anything else is what the test looks for
            surprises += 1
            print(
                f"{path.name} {number}: {type(error).__name__} {error} {traceback.extract_tb(error.__traceback__)[-3:]}"
            )
        slowest = max(slowest, time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(surprises, round(slowest, 2), peak, len(opened))


if __name__ == "__main__":
    main()
