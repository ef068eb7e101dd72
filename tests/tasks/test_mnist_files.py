"""MNIST's file formats, proved on a tiny set of the same layout written here: the real files are not shipped."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from limbeck import tasks
from limbeck.errors import InputError
from limbeck.tasks.mnist_files import FILES, FOLDER, VARIABLE, standardised


def columns(train=60, test=20):
    rng = np.random.default_rng(0)
    made = {"x_train": rng.integers(256, size=(train, 28, 28)), "y_train": np.arange(train) % 10}
    made |= {"x_test": rng.integers(256, size=(test, 28, 28)), "y_test": np.arange(test) % 10}
    return {key: value.astype(np.uint8) for key, value in made.items()}


def idx(array: np.ndarray, magic: int) -> bytes:
    return magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, made=None, packed=False) -> Path:
    folder.mkdir(exist_ok=True)
    for column, array in (made or columns()).items():
        name, magic = FILES[column]
        data = idx(array, magic)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


def write_npz(path: Path, made=None) -> Path:
    np.savez_compressed(path, **(made or columns()))
    return path


def test_all_layouts_give_the_same_task(tmp_path, monkeypatch):
    made = columns()
    plain = tasks.resolve(f"mnist:{write_idx(tmp_path / 'plain')}")
    write_npz(write_idx(tmp_path / "both") / "mnist.npz")
    others = [tasks.resolve(f"mnist:{write_idx(tmp_path / 'gz', packed=True)}")]
    others += [tasks.resolve(f"mnist:{write_npz(tmp_path / 'mnist.npz')}"), tasks.resolve(f"mnist:{tmp_path / 'both'}")]
    monkeypatch.setenv(VARIABLE, str(tmp_path / "plain"))
    others += [tasks.resolve("mnist"), tasks.resolve("mnist:image")]
    for other in others:
        assert np.array_equal(other.inputs.reshape(-1, 784), plain.inputs)
        assert np.array_equal(other.labels, plain.labels)
    assert plain.spec.observation_space.shape == (784,)
    assert others[-1].spec.observation_space.shape == others[-1].image == plain.image == (28, 28, 1)
    assert (plain.train_rows, plain.validation_rows, plain.proof_episodes) == (50, 10, 20)
    assert plain.spec.action_space.n == 10
    # the test part is the distribution's own, in another order
    raw = {row.tobytes(): int(y) for row, y in zip(made["x_test"].reshape(-1, 784), made["y_test"], strict=True)}
    mean, spread = (float(plain.notes[0].split(word)[1].split(",")[0]) for word in ("mean ", "deviation "))
    back = np.round((plain.inputs[60:] * spread + mean) * 255).astype(np.uint8)
    assert {row.tobytes(): int(y) for row, y in zip(back, plain.labels[60:], strict=True)} == raw


def test_one_channel_is_normalised_by_one_mean_and_one_deviation(tmp_path):
    task = tasks.resolve(f"mnist:{write_idx(tmp_path / 'm')}")
    known = task.inputs[task.part("train")].astype(np.float64)
    assert known.mean() == pytest.approx(0, abs=1e-5)
    assert known.std() == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match=r"3 means and 3 spreads for images of 1 channel, shape \(20, 28, 28, 1\)"):
        standardised(task.inputs[60:].reshape(-1, 28, 28, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_where_it_is_looked_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match=r"MNIST is not at .*\.limbeck/mnist\. Put the four idx files.*LIMBECK_MNIST"):
        tasks.resolve("mnist")
    write_idx_at = Path(FOLDER).expanduser()
    write_idx_at.mkdir(parents=True)
    assert tasks.resolve(f"mnist:{write_idx(write_idx_at)}").labels.shape == (80,)
    assert tasks.resolve("mnist").labels.shape == (80,)


def replaced(name, change):
    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


IMAGES, LABELS = FILES["x_train"][0], FILES["y_train"][0]
HUGE = (2**31).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / LABELS).unlink(), f"lacks {LABELS} or {LABELS}.gz"),
        (replaced(IMAGES, lambda b: b[:100]), r"declares \(60, 28, 28\), 47,040 bytes, and holds 84"),
        (replaced(IMAGES, lambda b: b + b"x"), "and holds 47,041"),
        (replaced(IMAGES, lambda b: b""), "begins with , needed 00000803"),
        (replaced(IMAGES, lambda b: b"\x00\x00\x08\x01" + b[4:]), "begins with 00000801, needed 00000803"),
        (replaced(IMAGES, lambda b: b[:4] + HUGE * 3 + b[16:]), r"declares \(2147483648, .* and holds 47,040"),
        (replaced(LABELS, lambda b: b[:8] + b"\x0a" * 60), "labels run from 10 to 10"),
        (replaced(LABELS, lambda b: b[:4] + (59).to_bytes(4, "big") + b[8:-1]), r"labels uint8\(59,\)"),
        (lambda f: (f / "mnist.npz").write_bytes(b"PK\x03\x04nothing"), "no sound .npz"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_in_one_line(tmp_path, damage, message):
    folder = write_idx(tmp_path / "mnist")
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        tasks.resolve(f"mnist:{folder}")
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path):
    folder = write_idx(tmp_path / "mnist", packed=True)
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="cannot be read"):
        tasks.resolve(f"mnist:{folder}")


def test_an_npz_with_a_pickle_in_it_is_refused_and_not_opened(tmp_path):
    class Canary:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sung",))

    made: dict = dict(columns())
    made["y_test"] = np.array([Canary()] * 20, dtype=object)
    path = tmp_path / "mnist.npz"
    np.savez(path, **made)
    with pytest.raises(InputError, match=r"no sound \.npz file: Object arrays cannot be loaded"):
        tasks.resolve(f"mnist:{path}")
    assert not (tmp_path / "sung").exists()
    np.load(path, allow_pickle=True)["y_test"]
    assert (tmp_path / "sung").exists(), "the canary can sing"


def test_an_npz_that_unpacks_to_too_much_or_too_little_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x_train.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))
    with pytest.raises(InputError, match="unpacks to 314,572,800 bytes, at most"):
        tasks.resolve(f"mnist:{path}")
    made = columns()
    write_npz(path, {key: made[key] for key in ("x_train", "y_train")})
    with pytest.raises(InputError, match="lacks x_test, y_test"):
        tasks.resolve(f"mnist:{path}")
    write_npz(path, {**made, "x_test": made["x_test"].astype(np.float32)})
    with pytest.raises(InputError, match=r"test part has pictures float32\(20, 28, 28\)"):
        tasks.resolve(f"mnist:{path}")
    with pytest.raises(InputError, match="no file at"):
        tasks.resolve(f"mnist:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("content", [b"no array at all", b"\x93NUMPY\x01\x00"])
def test_an_npz_entry_that_is_no_array_is_refused(tmp_path, content):
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for column in FILES:
            archive.writestr(f"{column}.npy", content)
    with pytest.raises(InputError, match=r"Needed: uint8|no sound \.npz"):
        tasks.resolve(f"mnist:{path}")


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (1 << 46, 28, 28)})
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for column in FILES:
            archive.writestr(f"{column}.npy", head.getvalue())
    with pytest.raises(InputError, match=r"no sound \.npz"):
        tasks.resolve(f"mnist:{path}")


def test_a_gzip_bomb_is_stopped_at_its_limit(tmp_path, monkeypatch):
    from limbeck.tasks import mnist_files

    monkeypatch.setattr(mnist_files, "MOST_BYTES", 10_000)
    folder = write_idx(tmp_path / "mnist", packed=True)
    with pytest.raises(InputError, match="unpacks to more than 10,000 bytes"):
        tasks.resolve(f"mnist:{folder}")


def test_the_writer_of_this_test_writes_the_published_layout():
    data = io.BytesIO(idx(np.zeros((2, 28, 28), np.uint8), 0x803)).read()
    assert data[:16].hex() == "00000803" + "00000002" + "0000001c" + "0000001c"
