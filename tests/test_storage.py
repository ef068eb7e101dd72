"""Every write is atomic: fail the n-th file-system call, for every n, once and from then on."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import storage
from limbeck.errors import InputError, StorageError

CALLS = ("open", "write", "fsync", "replace", "close")
FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "short write": None}
OLD, NEW = b"old" * 1000, b"new!" * 1000


@contextmanager
def failing(nth, fault, for_good):
    """os calls number `nth` (and, for_good, all later ones) fail; yields what was called and what failed."""
    real = {name: getattr(os, name) for name in CALLS}
    seen, failed = [], []

    def patched(name):
        def call(*arguments, **options):
            seen.append(name)
            due = len(seen) == nth or (for_good and len(seen) > nth)
            code = FAULTS[fault]
            if not due or (code is None and name != "write"):
                return real[name](*arguments, **options)
            failed.append(name)
            if code is None:
                return real[name](arguments[0], bytes(arguments[1])[: max(1, len(arguments[1]) // 2)])
            if name == "close":
                real[name](*arguments)
            raise OSError(code, os.strerror(code))

        return call

    for name in CALLS:
        setattr(os, name, patched(name))
    try:
        yield seen, failed
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("for_good", [False, True])
def test_no_fault_destroys_the_old_file_or_is_reported_as_success(tmp_path, fault, for_good):
    path, nth, runs = tmp_path / "file", 0, 0
    seen = [None]
    while len(seen) >= nth:
        nth += 1
        path.write_bytes(OLD)
        with failing(nth, fault, for_good) as (seen, failed):
            try:
                storage.write_bytes(path, NEW)
                claimed = True
            except StorageError:
                claimed = False
        found = path.read_bytes()
        assert found in (OLD, NEW), f"{fault} in call {nth} ({failed}) destroyed the file"
        assert not claimed or found == NEW, f"{fault} in call {nth} ({failed}) was reported as success"
        runs += bool(failed)
    assert runs >= (1 if fault == "short write" else 5)


def test_a_failed_write_leaves_no_litter(tmp_path):
    with failing(3, "ENOSPC", True), pytest.raises(StorageError, match="Free that much space"):
        storage.write_bytes(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


@given(st.dictionaries(st.text("abc/_.", min_size=1, max_size=9), st.integers(0, 7), max_size=5))
@settings(max_examples=30, deadline=None)
def test_arrays_come_back_as_they_went(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    arrays = {
        k: np.arange(n * 3).astype(dtype).reshape(n, 3)
        for (k, n), dtype in zip(shapes.items(), ("f4", "i8", "u1", "f8", "?"), strict=False)
    }
    storage.write_arrays(path, arrays, {"note": "x"})
    found, meta = storage.read_arrays(path)
    assert meta == {"note": "x"}
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k], arrays[k]) and found[k].dtype == arrays[k].dtype for k in arrays)


def test_every_prefix_of_a_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    storage.write_arrays(path, {"x": np.arange(6, dtype=np.float32), "y": np.zeros((2, 2), np.int64)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            storage.parse_safetensors(np.frombuffer(whole[:length], np.uint8), "cut")


@pytest.mark.parametrize("header", [
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',  # twice
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',  # overlap
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',  # hole
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',  # bytes left over
    b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
    b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', b"[1,2]", b"nonsense",
])  # fmt: skip
def test_malformed_headers_are_refused(header):
    raw = np.frombuffer(len(header).to_bytes(8, "little") + header + bytes(8), np.uint8)
    with pytest.raises(InputError, match="not a valid safetensors file"):
        storage.parse_safetensors(raw, "bad")


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    code = f"from pathlib import Path\nfrom limbeck import storage\nwith storage.locked(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=f"process {holder.pid}"), storage.locked(tmp_path):
            pass
        holder.kill()
    with storage.locked(tmp_path):
        pass


def test_orphans_of_a_kill_are_cleaned_and_others_left(tmp_path):
    (tmp_path / f".model.123{storage.ASIDE}").write_text("half")
    (tmp_path / ".mine.tmp").write_text("not ours")
    with storage.locked(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {".mine.tmp", storage.LOCK}


def test_metrics_survive_a_tail_cut_at_every_byte(tmp_path):
    storage.append_metrics(tmp_path, [{"i": i} for i in range(3)])
    whole = (tmp_path / storage.METRICS).read_bytes()
    for length in range(len(whole)):
        (tmp_path / storage.METRICS).write_bytes(whole[:length])
        storage.append_metrics(tmp_path, [{"i": 9}])
        rows = storage.read_metrics(tmp_path)
        assert rows == [{"i": i} for i in range(whole[:length].count(b"\n"))] + [{"i": 9}]


def test_the_manifest_finds_changed_and_missing_files(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    storage.write_manifest(tmp_path)
    assert storage.check_manifest(tmp_path) == []
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").unlink()
    assert storage.check_manifest(tmp_path) == ["a", "b"]


def test_the_manifest_leaves_out_what_trackers_own(tmp_path):
    for name in ("tracking/mlflow.db", "artifacts/tracking/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    storage.write_manifest(tmp_path)
    (tmp_path / "tracking" / "mlflow.db").write_text("opened later")
    assert storage.check_manifest(tmp_path) == []
    (tmp_path / "artifacts" / "tracking" / "a").unlink()
    assert storage.check_manifest(tmp_path) == ["artifacts/tracking/a"]


def test_a_read_only_folder_is_a_storage_error(tmp_path):
    if os.geteuid() == 0:
        target = "/proc/limbeck-cannot-write-here/file"  # root may write anywhere but here
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        target = tmp_path / "locked" / "file"
    from pathlib import Path

    with pytest.raises(StorageError):
        storage.write_bytes(Path(target), b"x")
