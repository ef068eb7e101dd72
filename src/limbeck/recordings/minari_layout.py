"""Data sets in Minari's layout (metadata.json and data/main_data.hdf5), read and written with h5py alone.

Every dataset's size is checked against what the file holds before it is read; links that lead out of the file, external
and virtual storage are refused, so that recordings from a stranger read nothing but themselves.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import Array, Observation, Spec
from limbeck.errors import InputError, StorageError, missing_library, printable
from limbeck.hdf5 import DAMAGE, check_link, check_local, check_stored
from limbeck.recordings.records import MAX_BYTES, Recordings, checked

META, DATA = "metadata.json", "main_data.hdf5"
PART = "/"  # joins the keys of a nested observation, as a task's does


def read(folder: Path) -> Recordings:
    """The recordings of a data set's folder (or of its `data` folder). Raises InputError for damage and links."""
    inside = folder / "data" if (folder / "data").is_dir() else folder
    meta = _meta(inside / META)
    if meta.get("data_format", "hdf5") != "hdf5":
        raise _bad(folder, f"it is stored as {printable(meta['data_format'])}; save it with data_format='hdf5'")
    content = _bytes(inside / DATA)
    spec = _spec(meta, folder)
    try:
        with _h5py().File(io.BytesIO(content), "r") as file:
            episodes = list(_episodes(file, meta, spec, folder))
    except DAMAGE as error:
        raise _bad(folder, f"{DATA} is damaged ({printable(error)})") from error
    if not episodes:
        raise _bad(folder, "it holds no episodes")
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    names = [key for key in joined if key.startswith("obs")]
    obs: Observation = joined["obs"] if names == ["obs"] else {key[4:]: joined[key] for key in names}
    return checked(
        str(meta.get("dataset_id", folder.name)).replace("/", "-"), hashlib.sha256(content).hexdigest(), obs, joined["action"],
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
    if (inside / META).exists():
        raise StorageError(f"{folder} holds a data set already. Choose another folder.")
    inside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / DATA
        with _h5py().File(path, "w", track_order=True) as file:
            for i, (begin, end) in enumerate(records.episodes):
                _write_episode(file.create_group(f"episode_{i}"), i, records, begin, end)
        storage.write_bytes(inside / DATA, path.read_bytes())
    meta = {
        "total_episodes": len(records.episodes), "total_steps": records.rows, "data_format": "hdf5", "jpeg_encoding": False,
        "observation_space": json.dumps(_space_to_minari(spec.observation_space)),
        "action_space": json.dumps(_space_to_minari(spec.action_space)), "dataset_id": dataset_id,
        "minari_version": "0.5.4", "algorithm_name": "recorded by limbeck " + version("limbeck"),
        "dataset_size": (inside / DATA).stat().st_size / 1e6,
    }  # fmt: skip
    storage.write_json(inside / META, meta)  # last: without it the folder is no data set


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


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise _bad(path.parent, f"it has no {DATA} of at most {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise _bad(path.parent, f"{DATA} cannot be read ({os.strerror(error.errno or 0)})") from error


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes()[: 2**24])
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(path.parent, f"{META} is missing or no JSON") from error
    if not isinstance(meta, dict):
        raise _bad(path.parent, f"{META} is no table")
    return meta


def _spec(meta: Mapping[str, Any], folder: Path) -> Spec:
    try:
        stated = [_space(json.loads(meta[key])) for key in ("observation_space", "action_space")]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _bad(folder, f"{META} states no spaces that are read here ({printable(error)})") from error
    return Spec(stated[0], stated[1], folder.name)


def _episodes(file: Any, meta: Mapping[str, Any], spec: Spec, folder: Path) -> Iterator[dict[str, Array]]:
    left = MAX_BYTES
    for number in range(int(meta.get("total_episodes", len(file)))):
        group = _entry(file, f"episode_{number}", folder)
        steps = len(_entry(group, "rewards", folder))
        columns: dict[str, Array] = {}
        jpeg = bool(meta.get("jpeg_encoding", True))
        for key, part in _parts(spec.observation_space):
            found = group if not key else _entry(group, "observations", folder)
            column = _column(found, key or "observations", part, jpeg, folder)
            columns[f"obs/{key}" if key else "obs"] = column[:steps]
        for ours, theirs in (
            ("action", "actions"),
            ("reward", "rewards"),
            ("terminated", "terminations"),
            ("truncated", "truncations"),
        ):
            columns[ours] = _column(group, theirs, None, False, folder)
        left -= sum(c.nbytes for c in columns.values())
        if left < 0:
            raise _bad(folder, f"it unpacks to more than {MAX_BYTES >> 30} GiB")
        if steps:
            yield columns


def _parts(space: gym.Space[Any], prefix: str = "") -> Iterator[tuple[str, gym.Space[Any]]]:
    """The leaves of an observation space by joined key; ("", space) for a plain one; texts are left out."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, f"{prefix}{PART}{key}" if prefix else key)
    elif not isinstance(space, gym.spaces.Text):
        yield prefix, space


def _entry(group: Any, name: str, folder: Path) -> Any:
    """A child that lies in this very file."""
    for step in name.split(PART):
        if step not in group:
            raise _bad(folder, f"{printable(name)} is missing")
        check_link(group, step, name, printable(folder))
        group = group[step]
    return group


def _column(group: Any, name: str, space: gym.Space[Any] | None, jpeg: bool, folder: Path) -> Array:
    dataset = _entry(group, name, folder)
    if not hasattr(dataset, "shape"):
        raise _bad(folder, f"{printable(name)} is no column")
    check_local(dataset, name, printable(folder))
    if jpeg and space is not None and _is_image(space):
        return _pictures(dataset, folder)
    check_stored(dataset, name, printable(folder), MAX_BYTES, "fiub")
    return np.asarray(dataset[()])


def _pictures(dataset: Any, folder: Path) -> Array:
    """[T, H, W, C] images from the JPEG files that Minari keeps."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_library("pillow", "minari", "reading JPEG images of a Minari data set") from error
    frames = []
    for content in dataset[()]:
        image = Image.open(io.BytesIO(np.asarray(content, np.uint8).tobytes()), formats=("JPEG",))
        if image.size[0] * image.size[1] > 2**24:
            raise _bad(folder, f"it holds an image of {image.size[0]} x {image.size[1]}")
        frames.append(np.asarray(image, np.uint8))
    return np.stack(frames)


def _is_image(space: gym.Space[Any]) -> bool:
    return (
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3)
    )


# ---------------------------------------------------------------- spaces


def _space(data: Mapping[str, Any]) -> gym.Space[Any]:
    match data["type"]:
        case "Box":
            dtype = np.dtype(data["dtype"])
            return gym.spaces.Box(
                np.array(data["low"], dtype), np.array(data["high"], dtype), tuple(data["shape"]), dtype.type
            )
        case "Discrete":
            return gym.spaces.Discrete(int(data["n"]), start=int(data.get("start", 0)))
        case "MultiDiscrete":
            return gym.spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        case "MultiBinary":
            return gym.spaces.MultiBinary(data["n"])
        case "Dict":
            flat = dict(_parts(gym.spaces.Dict({k: _space(v) for k, v in data["subspaces"].items()})))
            return gym.spaces.Dict(flat)
        case "Text":
            return gym.spaces.Text(1)
    raise ValueError(f"a space of type {printable(data['type'])}")


def _space_to_minari(space: gym.Space[Any]) -> dict[str, Any]:
    match space:
        case gym.spaces.Box():
            return {
                "type": "Box",
                "dtype": str(space.dtype),
                "shape": list(space.shape),
                "low": space.low.tolist(),
                "high": space.high.tolist(),
            }
        case gym.spaces.Discrete():
            return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
        case gym.spaces.MultiDiscrete():
            return {
                "type": "MultiDiscrete",
                "dtype": str(space.dtype),
                "nvec": space.nvec.tolist(),
                "start": space.start.tolist(),
            }
        case gym.spaces.MultiBinary():
            return {"type": "MultiBinary", "n": list(space.shape) if len(space.shape) > 1 else int(space.shape[0])}
        case gym.spaces.Dict():
            return {"type": "Dict", "subspaces": {k: _space_to_minari(v) for k, v in space.spaces.items()}}
    raise spaces.unsupported("space", space)


def _bad(folder: Path, why: str) -> InputError:
    return InputError(
        f"the data set {printable(folder)}: {why}. Allowed: Minari's layout in HDF5. Record or copy it again."
    )
