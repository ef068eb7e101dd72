"""MNIST from files that the user has: read as data, every size checked, nothing unpickled and nothing downloaded.

`mnist` looks in the folder that LIMBECK_MNIST names, else in ~/.limbeck/mnist; `mnist:PATH` in PATH, a folder or an
.npz file. A folder holds the four idx files of the original distribution, plain or gzipped, or mnist.npz as Keras
ships it. `mnist:image` gives pictures [28, 28, 1] instead of flat rows [784].
"""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck import seeding
from limbeck.contracts import Array, Floats
from limbeck.errors import InputError, printable
from limbeck.tasks.datasets import DatasetTask, split

VARIABLE, FOLDER = "LIMBECK_MNIST", "~/.limbeck/mnist"
SIDE, CLASSES = 28, 10
MOST_ROWS, MOST_BYTES = 1 << 18, 1 << 28  # what is declared or unpacks beyond these is no MNIST
FILES = {  # column: (name of the idx file, magic number: 08 for bytes, then the number of axes)
    "x_train": ("train-images-idx3-ubyte", 0x803),
    "y_train": ("train-labels-idx1-ubyte", 0x801),
    "x_test": ("t10k-images-idx3-ubyte", 0x803),
    "y_test": ("t10k-labels-idx1-ubyte", 0x801),
}
WANTED = "the four idx files (train-images-idx3-ubyte[.gz] ...) or mnist.npz"


def mnist(given: str = "mnist") -> DatasetTask:
    """The task that `mnist`, `mnist:image` or `mnist:PATH` names: pixels in 0..1, brought to mean 0 and deviation 1.

    Its test part is the distribution's own, so accuracies compare with published ones; a sixth of the training files
    is the validation part.
    """
    option = given.partition(":")[2]
    where = Path(option if option not in ("", "image") else os.environ.get(VARIABLE, FOLDER)).expanduser()
    columns = _from_npz(where) if where.suffix == ".npz" else _from_folder(where)
    _check(columns, where)
    trained, tested = len(columns["x_train"]), len(columns["x_test"])
    orders = [seeding.generator(0, "train", rows).permutation(rows) for rows in (trained, tested)]
    order = np.concatenate([orders[0], trained + orders[1]])
    pixels = np.concatenate([columns["x_train"], columns["x_test"]])[order].reshape(-1, SIDE, SIDE, 1)
    labels = np.concatenate([columns["y_train"], columns["y_test"]])[order].astype(np.int64)
    images = pixels.astype(np.float32) / np.float32(255)
    rows = (trained - trained // 6, trained // 6)
    known = images[: rows[0]]
    mean, spread = float(known.mean(dtype=np.float64)), float(known.std(dtype=np.float64))
    images = standardised(images, (mean,), (max(spread, 1e-6),))
    shaped = images if option == "image" else images.reshape(len(images), -1)
    name = "mnist:image" if option == "image" else "mnist"
    task = split(name, shaped, labels, rows, CLASSES, (SIDE, SIDE, 1))
    note = f"{trained:,} training and {tested:,} test pictures from {printable(where.name)}, pixel mean {mean:.4f}, deviation {spread:.4f}"
    return replace(task, notes=(note,), label_names=tuple("0123456789"))


def standardised(images: Floats, mean: tuple[float, ...], spread: tuple[float, ...]) -> Floats:
    """(x - mean) / spread for images [N, H, W, C], one mean and one spread per channel.

    Numbers for another count of channels are refused: broadcast, three of them turn one channel into three.
    """
    channels = images.shape[-1]
    if len(mean) != channels or len(spread) != channels:
        raise InputError(
            f"a normalisation of {len(mean)} means and {len(spread)} spreads for images of {channels} channel{'s' * (channels != 1)}, "
            f"shape {images.shape}. Allowed: one of each per channel."
        )
    return ((images - np.asarray(mean, np.float32)) / np.asarray(spread, np.float32)).astype(np.float32, copy=False)


# ---------------------------------------------------------------- reading


def _from_folder(folder: Path) -> dict[str, Array]:
    if not folder.is_dir():
        raise InputError(
            f"MNIST is not at {printable(folder)}. Put {WANTED} into a folder and name it by mnist:PATH or {VARIABLE}."
        )
    if (folder / "mnist.npz").is_file():
        return _from_npz(folder / "mnist.npz")
    return {column: _from_idx(_found(folder, name), magic) for column, (name, magic) in FILES.items()}


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if path.is_file():
            return path
    raise InputError(f"{printable(folder)} lacks {name} or {name}.gz. Needed: {WANTED}.")


def _from_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array of an idx file: magic number, the size of each axis (big-endian 32 bits each), then the bytes."""
    data = _content(path)
    axes = magic & 0xFF
    if len(data) < 4 + 4 * axes or int.from_bytes(data[:4], "big") != magic:
        raise InputError(
            f"{printable(path)} begins with {data[:4].hex()}, needed {magic:08x}. Download the file again."
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", axes, 4))
    body = len(data) - 4 - 4 * axes
    declared = 1
    for size in shape:
        declared *= size
    if declared != body:
        raise InputError(
            f"{printable(path)} declares {shape}, {declared:,} bytes, and holds {body:,}. Download the file again."
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data: bytes = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{printable(path)} cannot be read: {printable(error)}. Download the file again.") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{printable(path)} unpacks to more than {MOST_BYTES:,} bytes. Needed: {WANTED}.")
    return data


def _from_npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise InputError(f"no file at {printable(path)}. Needed: {WANTED}.")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise InputError(f"{printable(path)} unpacks to {size:,} bytes, at most {MOST_BYTES:,}. Needed: {WANTED}.")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [column for column in FILES if column not in arrays.files]
            if missing:
                raise InputError(f"{printable(path)} lacks {', '.join(missing)}. Needed: {', '.join(FILES)}.")
            return {column: np.asarray(arrays[column]) for column in FILES}  # bytes where an entry is no array
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError) as error:
        raise InputError(
            f"{printable(path)} is no sound .npz file: {printable(error)}. Download the file again."
        ) from error


def _check(columns: dict[str, Array], where: Path) -> None:
    for part in ("train", "test"):
        x, y = columns[f"x_{part}"], columns[f"y_{part}"]
        if x.shape[1:] != (SIDE, SIDE) or y.shape != x.shape[:1] or x.dtype != np.uint8 or y.dtype.kind not in "iu":
            raise InputError(
                f"{printable(where)}: the {part} part has pictures {x.dtype}{x.shape} and labels {y.dtype}{y.shape}. "
                f"Needed: uint8 [N, {SIDE}, {SIDE}] and whole numbers [N]."
            )
        if not 12 <= len(x) <= MOST_ROWS:
            raise InputError(
                f"{printable(where)}: the {part} part has {len(x):,} pictures, allowed 12 to {MOST_ROWS:,}."
            )
        if y.min() < 0 or y.max() >= CLASSES:
            raise InputError(f"{printable(where)}: the {part} labels run from {y.min()} to {y.max()}, needed 0 to 9.")
