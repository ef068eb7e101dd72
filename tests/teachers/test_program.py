"""TorchScript and .pt2: refused; under --trust confined, and what they try from there fails."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hostile_cases import FIXTURES, with_member
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck import teachers
from limbeck.contracts import Spec
from limbeck.errors import EnvironmentFault, InputError, LimbeckError, UnsafeError
from limbeck.teachers import confined, formats
from limbeck.teachers.confined import Confined
from limbeck.teachers.files import File, Given
from limbeck.teachers.formats import program

CART = Spec(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Discrete(2))
PROGRAMS = ("torch_scripted.pt", "torch_traced.pt", "torch_exported.pt2")
HOSTILE = ("call.pt", "pickled.pt2", "weight.pt2")
needs_walls = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confined.MACHINES,
    reason="teachers that are programs need Linux on x86-64 or ARM64",
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hostile programs; each one fired when it was used without confinement."""
    folder = tmp_path_factory.mktemp("attacks")
    script = Path(__file__).with_name("program_attacks.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["call.pt", "True", "pickled.pt2", "True", "weight.pt2", "True"], (
        done.stdout,
        done.stderr,
    )
    return folder


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused_and_told_how_to_become_weights(name, audited):
    path = FIXTURES / name
    teachers.inspect(path)  # the readers themselves are imported once
    with (
        audited() as events,
        pytest.raises(UnsafeError, match=r"Refused, nothing was run.*safetensors\.torch") as caught,
    ):
        teachers.load(path, CART)
    assert caught.value.exit_code == 4
    info = teachers.inspect(path)
    assert (info.format, info.unread) == ("program", (name,))
    assert info.sha256 == sha256(path)
    assert not events, events


def test_only_the_digest_of_this_very_file_is_trust():
    path = FIXTURES / "torch_scripted.pt"
    right = sha256(path)
    for wrong in (right.upper(), right[:-1], right + " ", sha256(FIXTURES / "torch_traced.pt"), "yes", "", "*"):
        with pytest.raises(UnsafeError, match=right) as caught:
            teachers.load(path, CART, trust=wrong)
        assert "is not the SHA-256" in str(caught.value)


def test_hostile_programs_are_refused_without_a_marker(attacks, audited):
    for name in HOSTILE:  # the readers themselves are imported once
        assert teachers.inspect(attacks / name).format == "program"
    with audited() as events:
        for name in HOSTILE:
            with pytest.raises(UnsafeError):
                teachers.load(attacks / name, CART)
            info = teachers.inspect(attacks / name)
            assert info.format == "program"
            if name == "call.pt":
                assert any("reaches for files: torch.from_file" in note for note in info.notes)
            else:
                code = [n for names in info.stated["code"].values() for n in names] + [*info.notes]
                assert any("io.open" in text or "builtins.open" in text for text in code)
    assert not events, events
    assert not (attacks / "CANARY").exists()


def test_compiled_code_is_refused_even_if_trusted(tmp_path):
    path = with_member(
        FIXTURES / "torch_exported.pt2", tmp_path / "a.pt2", "torch_exported/data/aotinductor/m.so", b"x"
    )
    with pytest.raises(UnsafeError, match="compiled code"):
        teachers.load(path, CART, trust=sha256(path))


def test_a_pickled_module_stays_refused():
    path = FIXTURES / "torch_module.pt"
    with pytest.raises(UnsafeError, match="more than tensors"):
        teachers.load(path, CART)
    with pytest.raises(InputError, match="trust"):
        teachers.load(path, CART, trust=sha256(path))


def test_a_system_without_walls_runs_nothing(monkeypatch):
    path = FIXTURES / "torch_scripted.pt"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(UnsafeError, match="cannot confine"):
        teachers.load(path, CART, trust=sha256(path))


def test_damage_is_one_clear_line(tmp_path):
    for name in PROGRAMS:
        content = (FIXTURES / name).read_bytes()
        for cut in (100, len(content) // 2, len(content) - 1):
            path = tmp_path / name
            path.write_bytes(content[:cut])
            with pytest.raises(LimbeckError) as caught:
                teachers.load(path, CART)
            assert "\n" not in str(caught.value)


def test_content_decides():
    for name in PROGRAMS:
        assert formats.of(File(Path("x.zip"), (FIXTURES / name).read_bytes()))[0] == "program"
    for name in ("torch_state_dict.pt", "torch_module.pt", "cartpole_ppo_sb3.zip", "keras_dense.keras"):
        assert not program.recognises(File(Path("x.pt"), (FIXTURES / name).read_bytes()))


# ---------------------------------------------------------------- confined


@needs_walls
def test_a_trusted_script_plays_confined_and_agrees():
    path, golden = FIXTURES / "torch_scripted.pt", np.load(FIXTURES / "torch_scripted.golden.npz")
    teacher = teachers.load(path, CART, trust=sha256(path))
    assert any("confined" in note and "--trust" in note for note in teacher.info.notes)
    assert teacher.info.stated["trusted_sha256"] == sha256(path)
    rows = teacher.policy(golden["obs"], {}, np.ones(200, bool)).params
    np.testing.assert_allclose(rows, golden["logits"], atol=1e-5)


@pytest.mark.slow
@needs_walls
@pytest.mark.parametrize("name", ["torch_traced.pt", "torch_exported.pt2"])
def test_other_trusted_programs_play_and_agree(name):
    path, golden = FIXTURES / name, np.load(FIXTURES / f"{Path(name).stem}.golden.npz")
    teacher = teachers.load(path, CART, trust=sha256(path))
    rows = teacher.policy(golden["obs"], {}, np.ones(200, bool)).params
    np.testing.assert_allclose(rows, golden["logits"], atol=1e-5)


@needs_walls
def test_a_script_that_writes_is_stopped(attacks):
    path = attacks / "call.pt"
    with pytest.raises(UnsafeError, match="confinement forbids") as caught:
        teachers.load(path, CART, trust=sha256(path))
    assert "\n" not in str(caught.value)
    assert not (attacks / "CANARY").exists()


@needs_walls
@pytest.mark.parametrize("name", ["pickled.pt2", pytest.param("weight.pt2", marks=pytest.mark.slow)])
def test_an_exported_program_that_hides_a_pickle_is_stopped(name, attacks):
    path = attacks / name
    with pytest.raises(UnsafeError, match="confinement forbids"):
        teachers.load(path, CART, trust=sha256(path))
    assert not (attacks / "CANARY").exists()


@pytest.mark.slow
@needs_walls
def test_one_that_prints_loops_or_takes_all_memory(attacks):
    held = Confined((attacks / "quiet.pt").read_bytes(), "scripted", "quiet.pt", call_seconds=2)
    np.testing.assert_array_equal(held(np.ones((3, 4), np.float32)), np.ones((3, 2), np.float32))
    held._exchange(["program"], [np.fromfile(attacks / "greedy.pt", np.uint8)], 20)
    with pytest.raises((InputError, EnvironmentFault), match=r"memory|ended"):
        held(np.zeros((1, 4), np.float32))
    held._exchange(["program"], [np.fromfile(attacks / "endless.pt", np.uint8)], 20)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="did not answer in time"):
        held(np.zeros((1, 4), np.float32))
    assert time.monotonic() - began < 6
    assert held._process.poll() is not None
    with pytest.raises(EnvironmentFault, match="has ended"):
        held(np.zeros((1, 4), np.float32))


@needs_walls
def test_the_walls_hold_against_python_itself(tmp_path):
    """Everything that a program could want, tried by Python code after the walls are up."""
    script = tmp_path / "tries.py"
    folder = Path(confined.child.__file__).parent
    script.write_text(f"""
import os, socket, sys
sys.path.insert(0, {str(folder)!r})
import confined_child as child
tries = {{
    "write": lambda: open({str(tmp_path / "CANARY")!r}, "w"), "read": lambda: open("/etc/hostname"),
    "socket": lambda: socket.socket(), "fork": os.fork, "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0), "unlink": lambda: os.unlink({str(script)!r}),
    "rename": lambda: os.rename({str(script)!r}, {str(tmp_path / "x")!r}), "chmod": lambda: os.chmod({str(script)!r}, 0),
    "mkdir": lambda: os.mkdir({str(tmp_path / "d")!r}), "listdir": lambda: os.listdir("/"), "pipe": os.pipe,
    "readother": lambda: os.read(2, 1),
}}
answers = os.dup(1)
child.raise_walls(answers)
left = []
for name, attempt in tries.items():
    try:
        attempt()
        left.append(name)
    except OSError:
        pass
os.write(answers, repr(left).encode())
os._exit(0)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]"), (done.stdout, done.stderr)
    assert not (tmp_path / "CANARY").exists()


def test_answers_of_a_hostile_child_are_checked():
    """The parent against headers that a program in full control of its process might send."""

    def heard(header: bytes, body: bytes = b"") -> object:
        held = Confined.__new__(Confined)
        stream = child.MAGIC + len(header).to_bytes(4, "little") + header + body
        held._name, held._finalizer = "x", lambda: None
        data = iter([stream])
        buffer = bytearray(next(data))

        def read(size: int, deadline: float) -> bytes:
            part = bytes(buffer[:size])
            del buffer[:size]
            return part

        held._read = read
        return held._hear(1)

    child = confined.child
    np.testing.assert_array_equal(heard(b'{"arrays": [["uint8", [2]]]}', b"\x01\x02"), [1, 2])
    hostile = (
        b"[]", b"{", b"1", b'{"arrays": [["object", [1]]]}', b'{"arrays": [["float32", [-1]]]}', b'{"arrays": 3}',
        b'{"arrays": [["float32", [1099511627776]]]}', b'{"arrays": [["float32", [1.5]]]}', b'{"arrays": [["V8", [1]]]}',
        b'{"arrays": [["float32", [true]]]}', b'{"arrays": [["float32"]]}', b"[" * 60_000,
        b'{"arrays": [' + b",".join([b'["uint8", []]'] * 9) + b"]}",
    )  # fmt: skip
    for header in hostile:
        with pytest.raises(UnsafeError, match="misbehaved"):
            heard(header)
    assert heard(b'{"error": "a\\u001bb"}') == "a\\x1bb"


# ---------------------------------------------------------------- mutations


def survives(content: bytes) -> None:
    file = File(Path("x.pt"), content)
    for verb in (lambda: formats.of(file)[1].inspect(file), lambda: formats.of(file)[1].load(file, Given(CART))):
        try:
            verb()
        except LimbeckError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it raises is open


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray((FIXTURES / draw(st.sampled_from(PROGRAMS))).read_bytes())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 2, 0)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at:at] = draw(st.binary(min_size=1, max_size=32))
            case 2:
                del data[at : at + draw(st.integers(1, 64))]
            case _:
                del data[max(at, 1) :]
    return bytes(data)


@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutations())
def test_mutations_are_survived(content):
    survives(content)


@pytest.mark.slow
@settings(max_examples=5_000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutations())
def test_many_mutations_are_survived(content):
    survives(content)


@pytest.mark.slow
@needs_walls
def test_mutated_programs_under_trust_stay_inside(tmp_path):
    """Weights and code of a script mutated in their members, run in one child after another."""
    rng, source = np.random.default_rng(0), FIXTURES / "torch_scripted.pt"
    held: Confined | None = None
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(150):
        name = list(members)[int(rng.integers(len(members)))]
        data = bytearray(members[name])
        for _ in range(int(rng.integers(1, 5))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        content = with_member(source, tmp_path / "m.pt", name, bytes(data)).read_bytes()
        try:
            if held is None:
                held = Confined(content, "scripted", "m.pt", call_seconds=20)
            else:
                held._exchange(["program"], [np.frombuffer(content, np.uint8)], 20)
            held(np.zeros((2, 4), np.float32))
        except LimbeckError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it raises is open
            if held is not None and not held._finalizer.alive:
                held = None
    assert {p.name for p in tmp_path.iterdir()} == {"m.pt"}
