"""Teachers on the Hub, against a local stand-in server: cached, compared, refused in one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import huggingface_hub.constants
import huggingface_hub.utils.sha
import numpy as np
import pytest
from hostile_cases import FIXTURES, with_member
from hub_cases import COMMIT, OTHER, StandIn

from limbeck import identity, teachers
from limbeck.contracts import Spec
from limbeck.errors import InputError, UnsafeError
from limbeck.teachers import hub

CART = Spec(gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2))
ZIP = "hf://org/repo:ppo.zip"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn()
    stand_in.files["ppo.zip"] = (FIXTURES / "cartpole_ppo_sb3.zip").read_bytes()
    stand_in.old["ppo.zip"] = (FIXTURES / "sb3_a2c_cartpole.zip").read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield stand_in
    stand_in.close()


def blob(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache").glob("models--org--repo/blobs/*")
    return found


def test_a_file_is_fetched_once_and_plays_as_the_local_one_does(server):
    local = teachers.load(FIXTURES / "cartpole_ppo_sb3.zip", CART)
    fetched = teachers.load(ZIP, CART)
    obs = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    rows = [t.policy(obs, {}, np.ones(6, bool)).params for t in (local, fetched)]
    np.testing.assert_array_equal(*rows)
    assert fetched.info.sha256 == local.info.sha256
    assert identity.of_teacher(fetched) == identity.of_teacher(local)
    assert fetched.info.path == f"{ZIP}@{COMMIT}"
    assert fetched.info.stated["hub"] == {"repo": "org/repo", "file": "ppo.zip", "revision": "main", "commit": COMMIT}
    teachers.load(ZIP, CART)
    assert [r for r in server.requests if r.startswith("GET")] == ["GET /org/repo/resolve/main/ppo.zip"]


def test_a_revision_is_another_teacher(server):
    old = teachers.load(f"{ZIP}@v0", CART)
    assert old.info.path == f"{ZIP}@{OTHER}"
    assert old.info.sha256 != teachers.load(ZIP, CART).info.sha256
    assert teachers.load(f"{ZIP}@{OTHER}", CART).info.sha256 == old.info.sha256


def test_inspect_tells_where_it_came_from_and_runs_nothing(server, trap, tmp_path, audited):
    evil = with_member(FIXTURES / "cartpole_ppo_sb3.zip", tmp_path / "evil.zip", "policy.pth", trap.blob)
    server.files["ppo.zip"] = evil.read_bytes()
    with pytest.raises((InputError, UnsafeError)):
        teachers.load(ZIP, CART)
    server.files["ppo.zip"] = (FIXTURES / "cartpole_ppo_sb3.zip").read_bytes()
    assert not trap.fired()
    info = teachers.inspect(f"{ZIP}@v0")
    assert (info.format, info.path) == ("sb3", f"{ZIP}@{OTHER}")
    assert info.stated["hub"]["commit"] == OTHER


def test_programs_from_the_hub_are_refused(server):
    server.files["p.pt"] = (FIXTURES / "torch_scripted.pt").read_bytes()
    with pytest.raises(UnsafeError, match="TorchScript program"):
        teachers.load("hf://org/repo:p.pt", CART)


def test_nothing_beside_the_file_is_fetched(server):
    server.files["ppo.json"] = b'{"return": 12}'
    server.files["vec_normalize.pkl"] = b"x"
    info = teachers.load(ZIP, CART).info
    assert "return" not in info.stated
    assert all("ppo.zip" in request for request in server.requests)


def test_the_cache_works_without_a_network(server, monkeypatch):
    first = teachers.load(ZIP, CART)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    seen = len(server.requests)
    assert teachers.load(ZIP, CART).info == first.info
    assert teachers.load(f"{ZIP}@{COMMIT}", CART).info.sha256 == first.info.sha256
    assert len(server.requests) == seen
    with pytest.raises(InputError, match="not in the cache") as caught:
        teachers.load("hf://org/repo:other.zip", CART)
    assert "\n" not in str(caught.value)


def test_a_poisoned_cache_is_refused_with_both_digests(server, tmp_path):
    sound = teachers.load(ZIP, CART).info.sha256
    file = blob(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match="delete it") as caught:
        teachers.load(ZIP, CART)
    assert sound in str(caught.value)
    file.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InputError, match=sound):
        teachers.inspect(ZIP)


def test_small_files_are_compared_with_the_digest_of_git(server, tmp_path):
    content = b"PK..."
    git = huggingface_hub.utils.sha.git_hash(content)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    address = hub.parse(ZIP)
    hub._compare(content, blobs / git, address)
    with pytest.raises(InputError, match=git):
        hub._compare(content + b"x", blobs / git, address)


def test_what_cannot_be_had_is_one_line(server, monkeypatch):
    cases = {
        "hf://org/repo:absent.zip": "no such file",
        f"{ZIP}@nothere": "no such revision",
        "hf://org/secret:ppo.zip": "private",
        "hf://org/gated:ppo.zip": "agreement",
    }
    monkeypatch.setenv("HF_TOKEN", "hf_canarytoken")
    for address, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            teachers.load(address, CART)
        assert "\n" not in str(caught.value)
        assert "canarytoken" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_line_soon_and_the_cache_still_serves(server, monkeypatch):
    digest = teachers.load(ZIP, CART).info.sha256
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert teachers.load(ZIP, CART).info.sha256 == digest
    began = time.monotonic()
    with pytest.raises(InputError, match="the Hub was not reached") as caught:
        teachers.load("hf://org/repo:other.zip", CART)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_fetched(server):
    server.declared = 5 * 2**30
    with pytest.raises(InputError, match="5,368,709,120 bytes"):
        teachers.load(ZIP, CART)
    assert not [r for r in server.requests if r.startswith("GET")]


@pytest.mark.parametrize(
    "address",
    [
        "hf://org/repo:../../etc/passwd", "hf://org/repo:/etc/passwd", "hf://org/repo:a/../../b", "hf://org/repo:..\\b",
        "hf://org/repo", "hf://org/repo:", "hf://repo:x.zip", "hf://a/b/c:x.zip", "hf://../x:y", "hf://org/repo:x@../y",
        "hf://org/repo:x@", "hf://org/repo:a//b", "hf://org/repo:a\x1b[0m", "hf://org/repo:%2e%2e/x", "hf://org/re po:x",
    ],
)  # fmt: skip
def test_addresses_that_lead_elsewhere_are_refused(address, server, tmp_path):
    for verb in (lambda: teachers.load(address, CART), lambda: teachers.inspect(address)):
        with pytest.raises(InputError, match="is no file on the Hub"):
            verb()
    assert not server.requests
    assert not (tmp_path / "cache").exists()


def test_a_normaliser_may_lie_on_the_hub_too(server):
    pendulum = gym.make("Pendulum-v1")
    spec = Spec(pendulum.observation_space, pendulum.action_space)
    for suffix in ("zip", "pkl"):
        server.files[f"n.{suffix}"] = (FIXTURES / f"sb3_ppo_normalised_pendulum.{suffix}").read_bytes()
    local = teachers.load(
        FIXTURES / "sb3_ppo_normalised_pendulum.zip", spec, normaliser=FIXTURES / "sb3_ppo_normalised_pendulum.pkl"
    )
    fetched = teachers.load("hf://org/repo:n.zip", spec, normaliser="hf://org/repo:n.pkl")
    assert fetched.info.stated["normaliser_sha256"] == local.info.stated["normaliser_sha256"]


def test_the_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "limbeck\[hub\]"'):
        teachers.load(ZIP, CART)
