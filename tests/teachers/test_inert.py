from __future__ import annotations

import collections
import io
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_mutations import edits, fuzzed, mutated, survived

from limbeck.errors import InputError, UnsafeError
from limbeck.teachers import inert, plaindata
from limbeck.teachers.plaindata import Named, Opaque

PROTOCOLS = range(6)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


class Thing:
    """Pickles by reference to this module, which the reader must not import."""

    def __init__(self) -> None:
        self.mean = np.arange(3.0)
        self.inner = [1, 2]


def saved(value: object, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


# ---------------------------------------------------------------- what is read


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(plain_values, st.sampled_from(list(PROTOCOLS)))
def test_plain_data_comes_back_as_it_went(value: object, protocol: int) -> None:
    assert inert.read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "b1", ">f4", "c8", "U5", "S3"])
def test_arrays_of_every_protocol_and_order(protocol: int, dtype: str) -> None:
    base = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for array in (base, np.asfortranarray(base), base[:, ::2], base[:0], base[0, 0, 0].reshape(())):
        read = inert.read_pickle(pickle.dumps({"a": array, "again": array}, protocol))
        assert read["a"].dtype == array.dtype
        assert read["a"].shape == array.shape
        assert read["a"].tobytes() == array.tobytes() == read["again"].tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_bare_arrays_and_ordered_dicts(protocol: int) -> None:
    value = collections.OrderedDict(a=np.float32(1.5), b=np.int64(-3), c=np.bool_(True))
    assert inert.read_pickle(pickle.dumps(value, protocol)) == {"a": 1.5, "b": -3, "c": True}
    assert inert.read_pickle(pickle.dumps(np.arange(3), protocol)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_becomes_a_record_whose_arrays_can_be_walked(protocol: int) -> None:
    read = inert.read_pickle(pickle.dumps(Thing(), protocol))
    assert isinstance(read, Opaque)
    assert read.attributes["inner"] == [1, 2]
    assert read.attributes["mean"].tolist() == [0, 1, 2]
    assert any("Thing" in name for name in inert.opaque_names(read))


@pytest.mark.parametrize("shared", [False, True])
def test_tensors_bit_for_bit_as_torch_loads_them(shared: bool) -> None:
    base = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    state = {
        "float": base,
        "transposed": base.T if shared else base.T.clone(),
        "slice": base[1:4, ::2],
        "double": base.double(),
        "half": base.half(),
        "long": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "expanded": torch.ones(1).expand(3, 2),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    content = saved(state)
    wanted = torch.load(io.BytesIO(content), weights_only=True)
    read = inert.read_torch_zip(content)
    assert list(read) == list(wanted)
    for key, array in read.items():
        other = wanted[key].detach().numpy()
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), key


def test_bfloat16_widens_exactly() -> None:
    value = torch.tensor([1.0, -3.1415926, 1e-30, float("inf")]).bfloat16()
    read = inert.read_torch_zip(saved({"w": value}))["w"]
    assert read.dtype == np.float32
    assert np.array_equal(read, value.float().numpy())


def test_a_module_s_state_dict_with_metadata_is_plain() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    read = inert.tensors(inert.read_torch_zip(saved(module.state_dict())), "x")
    assert set(read) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert inert.opaque_names(read) == ()


# ---------------------------------------------------------------- nothing runs


def hand_made(marker: str) -> dict[str, bytes]:
    """The ways a pickle can call `open(marker, "w")`."""
    path = marker.encode()
    text = b"X" + len(path).to_bytes(4, "little") + path
    call = text + b"X\x01\x00\x00\x00w"
    return {
        "reduce": b"cio\nopen\n(" + call + b"tR.",
        "stack_global": b"\x80\x04\x8c\x02io\x8c\x04open\x93(" + call + b"tR.",
        "inst": b"(" + call + b"iio\nopen\n.",
        "obj": b"(cio\nopen\n" + call + b"o.",
        "newobj_ex": b"\x80\x04cio\nopen\n(" + call + b"t}\x92.",
        "in a list": b"](cio\nopen\n(" + call + b"tRe.",
        "behind getattr": b"cbuiltins\ngetattr\n(cio\n__spec__\nX\x04\x00\x00\x00nametR.",
        "as a dict key": b"}(cio\nopen\n(" + call + b"tRNu.",
    }


@pytest.mark.parametrize("way", list(hand_made("x")))
def test_no_opcode_runs_anything(way: str, trap, audited) -> None:
    content = hand_made(str(trap.marker))[way]
    if way not in ("newobj_ex", "behind getattr"):  # `open` is no class: unpickling refuses NEWOBJ_EX
        pickle.loads(content)
        assert trap.fired(), "positive control"
    with audited() as events:
        read = inert.read_pickle(content)
        names = inert.names_in(content)
    assert not trap.fired()
    assert not events
    assert any(name.startswith(("io.", "builtins.")) for name in names)
    assert inert.opaque_names(read)


def test_tensors_refuses_a_state_dict_with_a_payload(trap, audited) -> None:
    content = saved({"a": torch.zeros(2), "b": trap.payload})
    torch.load(io.BytesIO(content), weights_only=False)
    assert trap.fired(), "positive control"
    with audited() as events, pytest.raises(UnsafeError, match=r"io\.open"):
        inert.tensors(inert.read_torch_zip(content), "policy.pth")
    assert not trap.fired()
    assert not events


def test_programs_are_refused() -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    with pytest.raises(UnsafeError, match="TorchScript"):
        inert.read_torch_zip(buffer.getvalue())
    exported = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), exported)
    with pytest.raises(UnsafeError, match=r"torch\.export"):
        inert.read_torch_zip(exported.getvalue())


# ---------------------------------------------------------------- damage and bombs


def test_every_prefix_is_refused() -> None:
    content = pickle.dumps({"a": np.arange(5.0), "b": [Thing(), "text", 2**80]}, 4)
    for length in range(len(content)):
        with pytest.raises(InputError):
            inert.read_pickle(content[:length])


ORIGINALS = [pickle.dumps({"a": np.arange(5.0), "b": [Thing(), {1, 2}, (3, "four")]}, p) for p in PROTOCOLS]


def read_and_walked(content: bytes) -> None:
    inert.names_in(content)
    inert.opaque_names(inert.read_pickle(content))


@fuzzed(100)
@given(st.sampled_from(ORIGINALS), edits)
def test_mutated_pickles_are_survived(original: bytes, changes: list) -> None:
    survived(lambda: read_and_walked(mutated(original, changes)))


@pytest.mark.slow
@fuzzed(20_000)
@given(st.sampled_from(ORIGINALS), edits)
def test_many_mutated_pickles_are_survived(original: bytes, changes: list) -> None:
    survived(lambda: read_and_walked(mutated(original, changes)))


def torch_members() -> dict[str, bytes]:
    base = torch.arange(12.0).reshape(3, 4)
    content = saved({"w": base, "t": base.T, "half": base.half(), "wide": base.bfloat16(), "b": torch.zeros(3)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


MEMBERS = torch_members()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_changes(member: str, changes: list) -> bytes:
    if member == "(the zip)":
        return mutated(zipped(MEMBERS), changes)
    return zipped(MEMBERS | {member: mutated(MEMBERS[member], changes)})


PLACES = st.sampled_from([*[name for name in MEMBERS if name.endswith("data.pkl")] * 4, *MEMBERS, "(the zip)"])


def opened(content: bytes) -> None:
    inert.tensors(inert.read_torch_zip(content), "x")


@fuzzed(100)
@given(PLACES, edits)
def test_mutated_torch_zips_are_survived(member: str, changes: list) -> None:
    survived(lambda: opened(with_changes(member, changes)))


@pytest.mark.slow
@fuzzed(10_000)
@given(PLACES, edits)
def test_many_mutated_torch_zips_are_survived(member: str, changes: list) -> None:
    survived(lambda: opened(with_changes(member, changes)))


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("operations", b"N0" * 600_000 + b"N."),
        ("nested", b"(" * 100_000 + b"."),
        ("long key", b"}" + b"(" + b"Nq\x00" + b"(" * 3 + b"h\x00" * 40 + b"tttNu."),
        ("trailing", pickle.dumps(1) + b"more"),
        ("left over", b"NN."),
        ("empty", b""),
        ("legacy", pickle.dumps(inert.LEGACY_MAGIC, 2)),
        ("extension", b"\x82\x01."),
        ("out of band", pickle.dumps(pickle.PickleBuffer(b"x"), 5, buffer_callback=lambda b: None)),
        ("absent storage", b"\x80\x02U\x010Q."),
    ],
)
def test_bombs_and_oddities_are_refused(what: str, content: bytes) -> None:
    with pytest.raises(InputError):
        inert.read_pickle(content)


def test_tensors_of_one_storage_share_one_budget() -> None:
    """Each of them is small enough; together they were gigabytes out of two kilobytes."""
    for count, size, taken in ((1, 2**20, True), (40, 2**20, False), (1, 2**25, False)):
        tensors = {f"w{n}": torch.ones(1).expand(size) for n in range(count)}
        assert survived(lambda held=saved(tensors): inert.read_torch_zip(held)) is taken


def test_what_real_files_repeat_stays_within_the_budget() -> None:
    """Tied weights, stored once and named three times, a transposed copy, and a bfloat16 that widens."""
    base = torch.zeros(1100, 4000)  # 17 MB, with its copies over the floor of the budget
    read = inert.read_torch_zip(saved({"a": base, "b": base, "c": base, "t": base.T, "wide": base.bfloat16()}))
    assert read["t"].shape == (4000, 1100)
    assert sum(array.nbytes for array in read.values()) > plaindata.BUDGET_FLOOR


def test_references_to_references_are_walked_once() -> None:
    value: list = []
    for _ in range(60):  # 2**60 leaves when written out
        value = [value, value]
    assert inert.opaque_names(inert.read_pickle(pickle.dumps(value))) == ()


def test_a_deep_chain_of_tuples_is_no_key() -> None:
    deep = b"N" + b"\x85" * 50_000
    assert inert.opaque_names(inert.read_pickle(b"\x80\x02" + deep + b".")) == ()
    with pytest.raises(InputError, match="as a key"):
        inert.read_pickle(b"\x80\x02}" + deep + b"Ns.")


def torch_zip(
    numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, data: bytes = b"\0" * 16
) -> bytes:
    """A hand-made torch file of one tensor."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Reference) else None

    class Tensor:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (Reference(), offset, size, stride, False, {})

    buffer, file = io.BytesIO(), io.BytesIO()
    Pickler(buffer, 2).dump({"w": Tensor()})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", data)
    return file.getvalue()


def test_a_hand_made_tensor_is_read() -> None:
    assert inert.read_torch_zip(torch_zip(4, (2, 2), (1, 2)))["w"].shape == (2, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        (4, (10**6, 10**6), (0, 0)),  # a bomb of strides
        (4, (5,), (1,)),  # reaches outside
        (4, (2,), (1,), 3),
        (4, (2,), (1,), -1),
        (4, (-1,), (1,)),
        (4, (2,), (-1,)),
        (4, (2, 2), (1,)),
        (10**9, (2,), (1,)),  # lies about its storage
        (4, (1,) * 40, (1,) * 40),
    ],
)
def test_tensors_that_lie_are_refused(arguments: tuple) -> None:
    with pytest.raises(InputError):
        inert.read_torch_zip(torch_zip(*arguments))


def test_records_compare_by_name() -> None:
    assert Named("a", "b") == Named("a", "b")
    assert str(Named("a", "b")) == "a.b"
    assert plaindata.hashable(("x", 1)) == ("x", 1)
