"""Data sets in Minari's layout (metadata.json and data/main_data.hdf5), read and written with h5py alone.

Every dataset's size, and every image's, is checked against what the file holds before it is read; links that lead out of the file, external
and virtual storage are refused, so that recordings from a stranger read nothing but themselves.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import storage
from limbeck.contracts import Array, Observation, Spec
from limbeck.errors import InputError, StorageError, missing_library, printable
from limbeck.hdf5 import DAMAGE, MAX_RATIO, check_link, check_local, check_stored
from limbeck.recordings import minari_spaces
from limbeck.recordings.minari_spaces import PART
from limbeck.recordings.records import MAX_BYTES, Recordings, checked, content_of, tidy

META, DATA = "metadata.json", "main_data.hdf5"
FREE = 256 * 2**20  # bytes that a file of any size may unpack to; beyond them MAX_RATIO times its own
_COLUMNS = {"reward": "rewards", "action": "actions", "terminated": "terminations", "truncated": "truncations"}
_NO_SPACE = (  # what descriptions of spaces raise that describe none
    KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, AssertionError, MemoryError,
)  # fmt: skip


class _Source:
    """What is being read, and how much of it still may be."""

    def __init__(self, folder: Path, spec: Spec, places: dict[str, str], content: bytes) -> None:
        self.folder, self.spec, self.places, self.content = folder, spec, places, content
        self._most = min(MAX_BYTES, max(FREE, MAX_RATIO * len(content)))
        self._left, self._unread = self._most, len(content)

    def take(self, size: int) -> None:
        """Raise InputError when all columns together become too large; before they are read."""
        self._left -= size
        if self._left < 0:
            raise _bad(self.folder, f"it unpacks to more than the {self._most:,} bytes that a file of its size may")

    def refer(self, size: int) -> None:
        """Raise InputError when entries that refer to bytes refer to more of them than the file has."""
        self._unread -= size
        if self._unread < 0:
            raise _bad(self.folder, "its images declare more bytes than are there")


def read(folder: Path) -> Recordings:
    """The recordings of a data set's folder (or of its `data` folder). Raises InputError for damage and links."""
    inside = folder / "data" if (folder / "data").is_dir() else folder
    described, content = _bytes(inside, META, 2**24), _bytes(inside, DATA, MAX_BYTES)
    meta = _meta(described, inside)
    if meta.get("data_format", "hdf5") != "hdf5":
        raise _bad(folder, f"it is stored as {printable(meta['data_format'])}; save it with data_format='hdf5'")
    spec, places = _spec(meta, folder)
    try:
        with _h5py().File(io.BytesIO(content), "r") as file:
            episodes = list(_episodes(file, meta, _Source(folder, spec, places, content)))
        if not episodes:
            raise _bad(folder, "it holds no episodes")
        joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    except DAMAGE as error:
        raise _bad(folder, f"{DATA} is damaged ({printable(error)})") from error
    obs: Observation = (
        joined["obs"] if "" in places else {key: joined[f"obs/{key}"] for key, _ in _parts(spec.observation_space)}
    )
    both = hashlib.sha256(hashlib.sha256(described).digest() + hashlib.sha256(content).digest()).hexdigest()
    return checked(
        str(meta.get("dataset_id", folder.name)), both, obs, joined["action"],
        joined["reward"], joined["terminated"], joined["truncated"], spec,
    )  # fmt: skip


def write(records: Recordings, folder: Path, spec: Spec, dataset_id: str) -> None:
    """A data set that Minari's own reader opens: folder/data/metadata.json and main_data.hdf5.

    The observation after an episode's last step is not among recorded rows: the last one is written again in its
    place, as Minari's layout wants one more observation than actions.
    """
    if records.action is None:
        raise InputError(f"the recordings {printable(records.name)} hold no actions, which Minari's layout needs.")
    inside = folder / "data"
    if os.path.exists(inside / META):
        raise StorageError(f"{folder} holds a data set already. Choose another folder.")
    made = io.BytesIO()  # in memory: where a disk is full the HDF5 library ends the whole process
    with _h5py().File(made, "w", track_order=True) as file:
        for i, (begin, end) in enumerate(records.episodes):
            _write_episode(file.create_group(f"episode_{i}"), i, records, begin, end)
    storage.write_bytes(inside / DATA, made.getvalue())
    meta = {
        "total_episodes": len(records.episodes), "total_steps": records.rows, "data_format": "hdf5", "jpeg_encoding": False,
        "observation_space": json.dumps(minari_spaces.described(spec.observation_space)),
        "action_space": json.dumps(minari_spaces.described(spec.action_space)), "dataset_id": dataset_id,
        "minari_version": "0.5.4", "algorithm_name": "recorded by limbeck " + version("limbeck"),
        "dataset_size": (inside / DATA).stat().st_size / 1e6,
    }  # fmt: skip
    storage.write_json(inside / META, meta)  # last: without it the folder is no data set


def refuse_taken(folder: Path) -> None:
    """Raise StorageError, before anything is played, where no data set can be written or something lies already."""
    if os.path.exists(folder / "data" / META):  # false, not an error, for names that no file system takes
        raise StorageError(f"{printable(folder)} holds a data set already. Choose another folder.")
    if os.path.isdir(folder):
        foreign = sorted(p.name for p in folder.iterdir() if p.name != "data")
        if foreign:
            raise StorageError(f"{printable(folder)} holds {printable(foreign[0])!r}. Choose a new folder.")
    elif os.path.lexists(folder):
        raise StorageError(f"{printable(folder)} is no folder. Choose a new one.")
    parent = folder
    while not os.path.exists(parent):
        parent = parent.parent
    storage.probe_writable(parent)


def _write_episode(group: Any, number: int, records: Recordings, begin: int, end: int) -> None:
    group.attrs["id"], group.attrs["total_steps"] = number, end - begin
    rows = np.append(np.arange(begin, end), end - 1)
    if isinstance(records.obs, dict):
        for key, column in records.obs.items():
            group.create_dataset(f"observations/{key}", data=column[rows])
    else:
        group.create_dataset("observations", data=records.obs[rows])
    assert records.action is not None
    columns = {"actions": records.action, "rewards": records.reward, "terminations": records.terminated}
    for name, values in {**columns, "truncations": records.truncated}.items():
        group.create_dataset(name, data=values[begin:end])


# ---------------------------------------------------------------- reading


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise missing_library("h5py", "minari", "reading Minari data sets") from error
    return h5py


def _bytes(folder: Path, name: str, most: int) -> bytes:
    try:
        return content_of(folder / name, most)
    except OSError as error:
        raise _bad(folder, f"{name} cannot be read ({printable(error.strerror or error)})") from error


def _meta(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(folder, f"{META} is no JSON ({printable(error)})") from error
    if not isinstance(meta, dict):
        raise _bad(folder, f"{META} is no table")
    return meta


def _spec(meta: Mapping[str, Any], folder: Path) -> tuple[Spec, dict[str, str]]:
    """The stated spaces, and where each part of an observation lies in an episode."""
    try:
        seen, places = minari_spaces.observation_space(json.loads(meta["observation_space"]))
        done = minari_spaces.space_of(json.loads(meta["action_space"]))
    except _NO_SPACE as error:
        raise _bad(folder, f"{META} states no spaces that are read here ({printable(error)})") from error
    return Spec(seen, done, tidy(folder.name)), places


def _episodes(file: Any, meta: Mapping[str, Any], source: _Source) -> Iterator[dict[str, Array]]:
    jpeg = bool(meta.get("jpeg_encoding", True))
    for number in range(int(meta.get("total_episodes", len(file)))):
        group = _entry(file, f"episode_{number}", source.folder)
        columns = {ours: _column(group, theirs, source) for ours, theirs in _COLUMNS.items()}
        steps = len(columns["reward"])
        for key, part in _parts(source.spec.observation_space):
            place = f"observations/{source.places[key]}".rstrip(PART)
            packed = jpeg and _is_packed(_dataset(group, place, source.folder), part)
            columns[f"obs/{key}" if key else "obs"] = (
                _pictures(group, place, part.shape or (), source) if packed else _column(group, place, source)
            )
        for name, column in columns.items():
            if len(column) < steps or (len(column) > steps and not name.startswith("obs")):
                raise _bad(source.folder, f"episode_{number} has {steps} rewards and {len(column)} {printable(name)}")
            columns[name] = column[:steps]
        if steps:
            yield columns | _ends(columns["terminated"], columns["truncated"], number, source.folder)


def _ends(terminated: Array, truncated: Array, number: int, folder: Path) -> dict[str, Array]:
    """[T] both as booleans: an episode ends with its group, whether or not a flag says so."""
    if terminated.size != len(terminated) or truncated.size != len(truncated):
        raise _bad(folder, f"episode_{number} has more than one end flag per step")
    ended, cut = (np.array(flags, bool).reshape(-1) for flags in (terminated, truncated))
    cut[-1] |= not ended[-1]
    return {"terminated": ended, "truncated": cut}


def _parts(space: gym.Space[Any]) -> list[tuple[str, gym.Space[Any]]]:
    return list(space.spaces.items()) if isinstance(space, gym.spaces.Dict) else [("", space)]


def _entry(group: Any, name: str, folder: Path) -> Any:
    """A child that lies in this very file."""
    for step in name.split(PART):
        if not hasattr(group, "keys") or step not in group:  # a data set would be searched number by number
            raise _bad(folder, f"{printable(name)} is missing")
        check_link(group, step, name, printable(folder))
        group = group[step]
    return group


def _dataset(group: Any, name: str, folder: Path) -> Any:
    dataset = _entry(group, name, folder)
    if not getattr(dataset, "shape", None):
        raise _bad(folder, f"{printable(name)} is no column")
    check_local(dataset, name, printable(folder))
    return dataset


def _column(group: Any, name: str, source: _Source) -> Array:
    dataset = _dataset(group, name, source.folder)
    check_stored(dataset, name, printable(source.folder), MAX_BYTES, "fiub")
    source.take(math.prod(dataset.shape) * dataset.dtype.itemsize)
    return np.asarray(dataset[()])


# ---------------------------------------------------------------- images


def _pictures(group: Any, name: str, shape: tuple[int, ...], source: _Source) -> Array:
    """[T, H, W] or [T, H, W, C] images from the JPEG files that Minari keeps, none decoded that has not the stated size."""
    dataset, folder = _dataset(group, name, source.folder), source.folder
    source.take(len(dataset) * math.prod(shape))
    if dataset.dtype.kind == "O":
        _check_references(dataset, name, source)
    else:  # files of one length: an ordinary column of bytes
        check_stored(dataset, name, printable(folder), MAX_BYTES, "u")
    frames = np.empty((len(dataset), *shape), np.uint8)
    for i in range(len(dataset)):
        frames[i] = _picture(np.asarray(dataset[i], np.uint8).tobytes(), shape, folder)
    return frames


def _check_references(dataset: Any, name: str, source: _Source) -> None:
    """Raise InputError unless every entry is a list of bytes that can be in the file.

    The library makes room for as many bytes as an entry says before it looks for them, and several entries may refer
    to the same ones: so the entries (length, address, index) are read here where they lie.
    """
    folder, plist = source.folder, dataset.id.get_create_plist()
    if _h5py().check_vlen_dtype(dataset.dtype) != np.uint8 or dataset.ndim != 1:
        raise _bad(folder, f"{printable(name)} holds no JPEG images")
    if plist.get_nfilters() or dataset.file.userblock_size:  # addresses in the file are then other ones
        raise _bad(folder, f"{printable(name)} is stored through a filter, or behind a user block")
    if dataset.chunks:
        chunks = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
        lie = [(chunk.byte_offset, chunk.size) for chunk in chunks]
    else:
        begin = dataset.id.get_offset()
        lie = [] if begin is None else [(begin, dataset.id.get_storage_size())]
    width = 8 + int(dataset.file.id.get_create_plist().get_sizes()[0])
    entry = np.dtype({"names": ["length"], "formats": ["<u4"], "offsets": [0], "itemsize": width})
    if sum(size for _, size in lie) < width * len(dataset) or max(dataset.chunks or (0,)) * width > len(source.content):
        raise _bad(folder, f"{printable(name)} declares {len(dataset):,} images, more than are there")
    for offset, size in lie:
        entries = np.frombuffer(source.content[offset : offset + size // width * width], entry)
        source.refer(int(entries["length"].sum(dtype=np.int64)))


def _picture(content: bytes, shape: tuple[int, ...], folder: Path) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_library("pillow", "minari", "reading JPEG images of a Minari data set") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes: they are compared here, before anything is decoded
            image = Image.open(io.BytesIO(content), formats=("JPEG",))
            size = (image.size[1], image.size[0], len(image.getbands()))
            if size != (*shape, 1)[:3]:
                raise _bad(folder, f"it holds an image of {size} where {shape} is stated")
            return np.asarray(image, np.uint8).reshape(shape)
    except (SyntaxError, struct.error, EOFError, Image.DecompressionBombError, *DAMAGE) as error:
        raise _bad(folder, f"it holds an image that is damaged ({printable(error)})") from error


def _is_packed(dataset: Any, space: gym.Space[Any]) -> bool:
    """Whether images lie there as JPEG files; Minari leaves small ones as they are."""
    image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    return image and dataset.shape[1:] != space.shape


def _bad(folder: Path, why: str) -> InputError:
    return InputError(
        f"the data set {printable(folder)}: {why}. Allowed: Minari's layout in HDF5. Record or copy it again."
    )
