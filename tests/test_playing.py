"""`limbeck play`: CartPole in the page, environments streamed to it, who may ask, and all of it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym
import numpy as np
import pytest
from exporters.cases_export import blueprint
from headless_chromium import chromium
from page_cases import Ask, asking
from reporting import reporting_samples

from limbeck import cli, exporters, rollout, standalone, tasks
from limbeck.contracts import Blueprint
from limbeck.errors import InputError
from limbeck.exporters import golden, wasm
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.standalone import playing, playpage
from limbeck.standalone.serving import Server
from limbeck.verbs import shipping

HOSTILE = """</script><script>document.title = 'CANARY'</script>"'&<b>"""
needs_clang = pytest.mark.skipif(bool(wasm.missing()), reason=wasm.missing())
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node: apt-get install nodejs")


def student(env: str, seed: int = 1, name: str = "student") -> Blueprint:
    """Random and bad at it, so that episodes are short and differ."""
    spec = tasks.resolve(env).spec
    made = blueprint(spec.action_space, hidden=(8,), observation_space=spec.observation_space, seed=seed, name=name)
    return replace(made, spec=spec)


def exported(policy: Blueprint, folder: Path, targets: tuple[str, ...] = ("wasm",)) -> Path:
    rows = np.stack([policy.spec.observation_space.sample() for _ in range(4)]).clip(-3, 3)
    exporters.export(
        policy, folder, targets, golden.label(NumpyPolicy(policy), rows, np.array([True, False, True, False]))
    )
    return folder


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(student("CartPole-v1", name=HOSTILE), tmp_path_factory.mktemp("cart"))


# ---------------------------------------------------------------- CartPole's dynamics

DYNAMICS = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const { cartpoleStep, cartpoleWorld } = await import(pathToFileURL(process.argv[2]).href);
const { physics, states, actions, gains } = JSON.parse(readFileSync(0, "utf8"));
const stepped = actions.map((action, i) => cartpoleStep(physics, states[i], action));
const world = cartpoleWorld(physics, { 7: states[0] });
const lived = [];
let told = await world.reset(7);
while (!told.truncated && !told.terminated) {
  told = await world.step([Number(gains.reduce((sum, gain, i) => sum + gain * told.obs[i], 0) > 0)]);
  lived.push(told.obs);
}
console.log(JSON.stringify({ stepped, lived, ended: [told.terminated, told.truncated] }));
"""


@needs_node
def test_cartpole_in_the_page_is_gymnasiums(tmp_path: Path) -> None:
    """Step by step to the last place over 500 states that are lived, and 500 steps in closed loop."""
    gains = [0.3, 0.6, 6.0, 1.5]
    task = tasks.resolve("CartPole-v1")
    env = gym.make("CartPole-v1")
    pole: Any = env.unwrapped
    obs, _ = env.reset(seed=7)
    states, actions, seen, truncated = [list(map(float, pole.state))], [], [], False
    while not truncated:
        actions.append(int(np.float64(obs) @ gains > 0))
        obs, _, terminated, truncated, _ = env.step(actions[-1])
        states.append(list(map(float, pole.state)))
        seen.append(obs)
        assert not terminated
    env.close()
    physics = playing._cartpole(task, 7).physics
    asked = {"physics": physics, "states": states, "actions": actions, "gains": gains}
    (tmp_path / "drive.mjs").write_text(DYNAMICS)
    done = subprocess.run(["node", str(tmp_path / "drive.mjs"), str(playpage.PAGE / "cartpole.mjs")],
                          input=json.dumps(asked), capture_output=True, text=True, check=True)  # fmt: skip
    told = json.loads(done.stdout)
    wanted = np.array(states[1:])
    assert len(wanted) == 500
    # sines of two libraries may differ in their last place; what they are multiplied with is of order 1
    assert np.abs(np.array(told["stepped"]) - wanted).max() <= 2 * np.spacing(np.abs(wanted).max())
    assert told["ended"] == [False, True]
    assert np.abs(np.array(told["lived"]) - np.array(seen)).max() < 1e-6  # a balanced pole forgets differences


@needs_clang
def test_cartpole_without_a_time_limit_has_a_page(cart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.spec("CartPole-v1"), "max_episode_steps", None)
    world = playing._cartpole(tasks.resolve("CartPole-v1"), 7)
    assert '"physics"' in playpage.write(cart, world, 7, served=False)
    assert "maxSteps" not in world.physics


# ---------------------------------------------------------------- the page as a file


@needs_clang
def test_the_page_is_one_file_that_asks_nobody(cart: Path, tmp_path: Path) -> None:
    made = standalone.play(str(cart), None, 5, 0, tmp_path / "page.html", print)
    assert made.page == tmp_path / "page.html"
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//[a-z0-9]+\.|url\(|@import", text)
    assert re.findall(r'\b(?:src|href)="([^"]*)"', text) == ["data:,"]
    assert text.count("</script>") == text.count("<script") == 2, "a name ended an element"
    assert not re.search(r"\bon\w+=|style=", text.split("<script")[0])
    assert "&lt;/script&gt;" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in (("script-src", '<script type="module">'), ("style-src", "<style>")):
        content = text.partition(tag)[2].partition("</style>" if tag == "<style>" else "</script>")[0]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in rules[rule]
    facts = json.loads(text.partition('id="facts">')[2].partition("</script>")[0])
    env = gym.make("CartPole-v1")
    env.reset(seed=9)
    assert facts["starts"]["9"] == list(map(float, env.unwrapped.state))
    assert base64.b64decode(facts["wasm"]) == (cart / "wasm" / "policy.wasm").read_bytes()


def test_pictures_become_png() -> None:
    image = pytest.importorskip("PIL.Image", reason='pip install "limbeck[report]"')
    drawn = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    with image.open(io.BytesIO(playing.png(drawn))) as read:
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read), drawn)
    assert playing.picture(np.full((4, 4, 3), 0.5)).max() == 128
    assert playing.picture(np.zeros((900, 1300, 3), np.uint8)).shape == (300, 432, 3)
    with pytest.raises(playing.CannotDraw, match="expected uint8"):
        playing.picture(np.zeros((4, 4)))


# ---------------------------------------------------------------- environments that are streamed


def while_served(
    folder: Path, visit: Callable[[Ask], Any], env: str | None = None
) -> tuple[Any, list[playing.Episode]]:
    """Serve a folder in this thread while a visitor asks in another; Ctrl-C when it is done."""
    found: list[Any] = []

    def visited(url: str) -> None:
        ask = asking(url)
        try:
            found.append(visit(ask))
        except BaseException as error:
            found.append(error)
        ask("played", {"seed": -1, "return": 0, "steps": 0, "pushes": 0})

    def tell(stage: str, text: str) -> None:
        if text.startswith("http"):
            threading.Thread(target=visited, args=(text.split()[0],)).start()
        elif text.startswith("seed -1"):
            raise KeyboardInterrupt

    played = standalone.play(str(folder), env, 0, 0, None, tell)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0], [one for one in played.episodes if one.seed >= 0]


@needs_clang
def test_an_environment_is_streamed_step_by_step(tmp_path: Path) -> None:
    pytest.importorskip("Box2D", reason='pip install "limbeck[envs]"')
    folder = exported(student("LunarLander-v3"), tmp_path)
    env = gym.make("LunarLander-v3")

    def visit(ask: Ask) -> None:
        wanted, _ = env.reset(seed=3)
        status, told = ask("reset", {"seed": 3})
        assert status == 200
        assert np.array_equal(np.float32(told["obs"]), wanted)
        assert base64.b64decode(told["picture"]).startswith(b"\x89PNG")
        episode, total = told["episode"], 0.0
        for number in range(200):
            obs, reward, terminated, truncated, _ = env.step(number % 2)
            status, told = ask("step", {"episode": episode, "action": [number % 2], "drawn": False})
            assert (status, told["reward"], told["terminated"], told["truncated"]) == (
                200,
                reward,
                terminated,
                truncated,
            )
            assert np.array_equal(np.float32(told["obs"]), obs)
            assert ("picture" in told) == terminated
            total += float(reward)
            if terminated:
                break
        assert terminated
        assert told["return"] == pytest.approx(total)
        assert ask("step", {"episode": episode, "action": [0]})[1] == {"error": "the episode is over. Begin another."}
        later = ask("reset", {"seed": 4})[1]["episode"]
        assert "another page plays" in ask("step", {"episode": episode, "action": [0]})[1]["error"]
        for wrong in (None, 1, [], [0, 0], ["0"], [4], [-1], [float("nan")], [True]):
            status, told = ask("step", {"episode": later, "action": wrong})
            assert (status, told["error"][:7]) == (400, "action "), wrong
        for wrong in (None, -1, 2**40, "3", 1.5):
            assert ask("reset", {"seed": wrong})[0] == 400
        assert ask("played", {"seed": 1})[0] == 400

    while_served(folder, visit)
    env.close()


# ---------------------------------------------------------------- in a real browser


@needs_clang
def test_chromium_plays_cartpole_from_the_file(cart: Path, tmp_path: Path) -> None:
    standalone.play(str(cart), None, 0, 0, tmp_path / "page.html", print)
    wanted = rollout.play(NumpyPolicy(student("CartPole-v1")), tasks.resolve("CartPole-v1"), [0, 1, 2])
    with chromium() as browser:
        browser.open(f"{(tmp_path / 'page.html').as_uri()}#speed=max&episodes=3")
        browser.until("document.getElementById('status').textContent === 'Done.'")
        rows = browser.value(
            "[...document.querySelectorAll('#played tr')].map((row) => [...row.cells].map((c) => c.textContent))"
        )
        assert rows == [[str(i), f"{wanted.returns[i]:g}", str(wanted.lengths[i]), "ended"] for i in (2, 1, 0)]
        assert browser.value("document.querySelector('h1').textContent").startswith(HOSTILE)
        assert "CANARY" not in browser.value("document.title").replace(HOSTILE, "")

        browser.open("about:blank")
        browser.open(f"{(tmp_path / 'page.html').as_uri()}#seed=1&speed=0.25", 400, 900, dark=True)
        browser.until("Number(document.getElementById('steps').textContent) > 0")
        browser.press(" ")
        speed = "document.querySelectorAll('#observation .value')[1].textContent"
        assert browser.value("document.getElementById('pause').textContent") == "Play"
        steps, before = browser.value("document.getElementById('steps').textContent"), float(browser.value(speed))
        browser.press("ArrowRight")
        assert float(browser.value(speed)) == pytest.approx(before + 0.5, abs=2e-3)
        browser.press("ArrowLeft")
        assert float(browser.value(speed)) == pytest.approx(before, abs=2e-3)
        assert browser.value("document.getElementById('status').textContent") == f"Pushed left at step {steps}."
        assert browser.value("document.getElementById('steps').textContent") == steps, "it went on while paused"
        assert browser.value("document.documentElement.scrollWidth") <= 400
        browser.value("document.getElementById('next').click()")
        browser.until("document.getElementById('seed').value === '2'")
        assert browser.complaints == []
        assert all(url.startswith(("file:", "data:", "about:")) for url in browser.requests)


@needs_clang
def test_chromium_plays_a_streamed_environment(tmp_path: Path) -> None:
    pytest.importorskip("Box2D", reason='pip install "limbeck[envs]"')
    policy = student("LunarLander-v3", seed=2)
    folder = exported(policy, tmp_path)
    wanted = rollout.play(NumpyPolicy(policy), tasks.resolve("LunarLander-v3"), [6, 7])
    with chromium() as browser:

        def tell(stage: str, text: str) -> None:
            if text.startswith("http"):
                browser.open(f"{text.split()[0]}#speed=max&seed=6")
            elif text.startswith("seed 7"):
                raise KeyboardInterrupt

        played = standalone.play(str(folder), None, 6, 0, None, tell)
        assert [(one.seed, one.steps) for one in played.episodes] == [(6, wanted.lengths[0]), (7, wanted.lengths[1])]
        assert [one.total for one in played.episodes] == pytest.approx(wanted.returns)
        pixels = "document.getElementById('stage').getContext('2d').getImageData(0, 0, 200, 200).data"
        assert browser.value(f"{pixels}.some((v) => v > 0)")
        browser.until("document.getElementById('status').textContent.includes('limbeck play has ended')")
        assert all(
            urlsplit(url).hostname == "127.0.0.1" or url.startswith(("data:", "about:")) for url in browser.requests
        )


# ---------------------------------------------------------------- the command


@needs_clang
def test_ctrl_c_ends_the_command_with_success(
    cart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def say(stage: str, text: str) -> None:
        said.append(text)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(shipping, "say", say)
    assert cli.main(["play", str(cart)]) == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/ \(Ctrl-C ends\)", said[0])
    assert capsys.readouterr().out == "0 episodes played\n"


@needs_clang
def test_what_cannot_be_played_is_one_line(cart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed, without = (
        shutil.copytree(cart, tmp_path / "changed"),
        exported(student("CartPole-v1"), tmp_path / "n", ("numpy",)),
    )
    (changed / "wasm" / "policy.wasm").write_bytes(b"\0asm")
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "gone"], "nothing to play is at"),
        ([f"{cart}:linear"], "is no finished run, so it has no member 'linear'"),
        ([tmp_path], "holds no contract.json"),
        ([changed], "policy.wasm is no longer what was exported"),
        ([without], "holds numpy, wasm is needed. Run: limbeck export POLICY.safetensors --to wasm"),
        ([cart, "--seed", "-1"], "--seed -1 is out of range"),
        ([cart, "--port", "70000"], "--port 70000 is out of range"),
        ([cart, "--env", "Acrobot-v1"], "the policy's observation space is"),
        ([cart, "--env", "CartPole-v0", "--out", tmp_path / "page.html"], "a page alone holds the dynamics of CartPole-v1 only"),
    ]  # fmt: skip
    for arguments, words in cases:
        assert cli.main(["play", *map(str, arguments)]) == (5 if changed in arguments else 2), arguments
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("limbeck: ")]
        assert words in line
    assert not (tmp_path / "page.html").exists()
    server = Server("", "", {})
    port = str(urlsplit(server.url).port)
    assert cli.main(["play", str(cart), "--port", port]) == InputError.exit_code
    server.close()
    assert f"limbeck: port {port} of 127.0.0.1 is taken. Choose another" in capsys.readouterr().err


@needs_clang
def test_the_member_of_a_run_is_found(cart: Path, tmp_path: Path) -> None:
    told = reporting_samples.result()
    members = [replace(told.members[0], name="big"), replace(told.members[1], name="small")]
    recipe = "teacher: t.zip\nenv: CartPole-v1\nseed: 0\n"
    run = reporting_samples.write_run(tmp_path / "run", replace(told, members=members), recipe=recipe)
    shutil.copytree(cart, run / "artifacts" / "small")
    exported(student("CartPole-v1"), run / "artifacts" / "big", ("numpy",))
    for source in (str(run), f"{run}:small"):
        assert standalone.play(source, None, 0, 0, tmp_path / "page.html", print).page == tmp_path / "page.html"
    with pytest.raises(InputError, match=r"Run: limbeck export .*run --members big --to wasm"):
        standalone.play(f"{run}:big", None, 0, 0, None, print)
    with pytest.raises(InputError, match=r"Run: limbeck export .*run --members big --to wasm"):
        standalone.play(str(run / "artifacts" / "big"), None, 0, 0, None, print)
    with pytest.raises(InputError, match="unknown member 'smal'; did you mean 'small'"):
        standalone.play(f"{run}:smal", None, 0, 0, None, print)
    (run / "recipe.yaml").write_text(recipe.replace("CartPole-v1", "somebody.module:CartPole-v1"))
    with pytest.raises(InputError, match=r"which imports a module\. Name the environment with --env"):
        standalone.play(str(run), None, 0, 0, None, print)
