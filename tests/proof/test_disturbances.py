"""What a disturbance does to every step, told by an environment that writes down what reached it."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from limbeck import rollout, seeding, tasks
from limbeck.contracts import PolicyOutput
from limbeck.errors import InputError
from limbeck.proof import disturbances, dynamics
from limbeck.proof.disturbances import DISTURBANCES, Spreads
from limbeck.spaces import head_for

STEPS = 40
SEEDS = [seeding.episode_seed(0, "stress", i) for i in range(20)]


class Diary(gym.Env):
    """The observation is (step, action that arrived last); the reward is the action that arrived."""

    observation_space = gym.spaces.Box(-1000.0, 1000.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._t += 1
        return np.array([self._t, action], np.float32), float(action), self._t == STEPS, False, {}


class Clock:
    """Says the number of the step it is in, counted for itself; writes down what it saw by the seed's place."""

    def __init__(self, spec):
        self.spec, self.head = spec, head_for(spec.action_space)

    def initial_state(self, batch):
        return {"t": np.zeros(batch)}

    def __call__(self, obs, state, first):
        t = np.where(first, 0, state["t"])
        return PolicyOutput(np.eye(1000, dtype=np.float32)[t.astype(int)], {"t": t + 1})


TASK = tasks.resolve(Diary)


def diary(name, level, task=TASK, seeds=SEEDS, spread=None, **options):
    """[N, T, 2] observations as seen and [N, T] actions as they arrived."""
    seen, arrived = np.full((len(seeds), STEPS, 2), np.nan), np.full((len(seeds), STEPS), np.nan)
    count = np.zeros(len(seeds), int)

    def watch(frame):
        for row in np.flatnonzero(frame.alive):
            place = frame.indices[row]
            seen[place, count[place]] = frame.obs[row]
            arrived[place, count[place]] = frame.reward[row]
            count[place] += 1

    changed = disturbances.disturbed(name, level, task, spread or {}, 0)
    rollout.play(Clock(task.spec), changed, list(seeds), watch=watch, **options)
    assert (count == STEPS).all()
    return seen, arrived


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_delayed_action_arrives_so_many_steps_later(steps):
    _, arrived = diary("delay", steps)
    wanted = np.maximum(np.arange(STEPS) - steps, 0)  # until then the first one
    np.testing.assert_array_equal(arrived, np.tile(wanted, (len(SEEDS), 1)))


def test_sticky_actions_repeat_what_was_taken_with_their_probability():
    _, arrived = diary("sticky", 0.25)
    repeated = arrived[:, 1:] == arrived[:, :-1]
    fresh = arrived == np.arange(STEPS)
    assert (repeated | fresh[:, 1:]).all()
    assert fresh[:, 0].all(), "an episode's first action is its own"
    draws = repeated.size
    assert abs(repeated.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / draws)


def test_dropped_frames_show_the_one_before_and_the_game_goes_on():
    seen, arrived = diary("dropped", 0.25)
    np.testing.assert_array_equal(arrived, np.tile(np.arange(STEPS), (len(SEEDS), 1)))
    fresh = seen[:, :, 0] == np.arange(STEPS)
    frozen = (seen[:, 1:] == seen[:, :-1]).all(axis=2)
    assert (fresh[:, 1:] | frozen).all()
    assert fresh[:, 0].all()
    assert abs(frozen.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / frozen.size)


def test_noise_is_normal_in_standard_deviations_of_each_number():
    spread = {"": np.array([2.0, 0.0])}
    seen, _ = diary("noise", 0.5, spread=spread)
    off = seen[:, :, 0] - np.arange(STEPS)
    assert abs(off.mean()) < 4 / np.sqrt(off.size)
    assert off.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * off.size))
    assert (seen[:, 1:, 1] == np.arange(STEPS - 1)).all(), "a number that never moves has no noise"


def test_all_levels_and_every_number_of_lanes_meet_the_same_draws():
    spread = {"": np.ones(2)}
    few, _ = diary("noise", 0.1, spread=spread, slots=2)
    many, _ = diary("noise", 0.2, spread=spread, slots=16)
    truth = np.tile(np.arange(STEPS), (len(SEEDS), 1))
    np.testing.assert_allclose(2 * (few[:, :, 0] - truth), many[:, :, 0] - truth, atol=1e-4)
    apart = many[:, :, 0] - truth
    assert len(np.unique(apart[:, 0])) == len(SEEDS), "each episode has its own"


def test_spreads_are_those_of_the_visited_rows():
    rows, spreads = np.random.default_rng(0).normal(5, [1, 7], (100, 2)), Spreads(TASK.spec)
    for begin in range(0, 100, 7):
        part = np.concatenate([rows[begin : begin + 7], [[1e9, 1e9]]])  # an idle lane
        spreads.see(part, np.arange(len(part)) < len(part) - 1)
    np.testing.assert_allclose(spreads.spread()[""], rows.std(axis=0), rtol=1e-12)


# ---------------------------------------------------------------- masks, pictures, what does not apply


class Masked(gym.Env):
    """A Dict with a mask and a picture."""

    observation_space = gym.spaces.Dict(
        {"action_mask": gym.spaces.MultiBinary(3), "image": gym.spaces.Box(0, 255, (2, 2), np.uint8)}
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self._t = 0
        return self._obs(), {}

    def step(self, action):
        self._t += 1
        return self._obs(), 0.0, self._t == 20, False, {}

    def _obs(self):
        return {"action_mask": np.eye(3, dtype=np.int8)[self._t % 3], "image": np.full((2, 2), 250, np.uint8)}


def test_masks_stay_true_and_pixels_stay_pixels():
    task, seen = tasks.resolve(Masked), []
    watch = lambda frame: seen.append({k: v[frame.alive] for k, v in frame.obs.items()})  # noqa: E731
    spread = {"image": np.full((2, 2), 10.0)}
    for name in ("noise", "dropped"):
        rollout.play(None, disturbances.disturbed(name, 0.5, task, spread, 0), [1, 2], mode="uniform", watch=watch)
    assert all((one["action_mask"].sum(axis=1) == 1).all() for one in seen)
    masks = np.concatenate([one["action_mask"][:1] for one in seen])
    np.testing.assert_array_equal(masks.argmax(axis=1), np.tile(np.arange(20) % 3, 2))
    pixels = np.concatenate([one["image"] for one in seen])
    assert pixels.dtype == np.uint8
    assert len(np.unique(pixels)) > 3
    assert pixels.min() > 200, "nothing wraps around"
    assert "may not be allowed" in disturbances.obstacle("delay", task)
    assert "real numbers" in disturbances.obstacle("adversarial", task)


class Bits(Diary):
    """A boolean picture beside codes from 0 to 10 in bytes, as MinAtar and MiniGrid show them."""

    observation_space = gym.spaces.Dict(
        {"bits": gym.spaces.Box(0, 1, (6, 6, 2), bool), "codes": gym.spaces.Box(0, 255, (50,), np.uint8)}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self._t += 1
        return self._obs(), 0.0, self._t == STEPS, False, {}

    def _obs(self):
        return {"bits": np.arange(72).reshape(6, 6, 2) % 3 == 0, "codes": np.full(50, 5, np.uint8)}


def test_noise_flips_bits_and_moves_codes_so_often_as_its_level_says():
    """A bit is another with probability level; a code of spread s is off by 1 with probability (level s)^2, so that its
    variance is that of the noise asked for; a smaller level changes a part of what a larger one changes."""
    task, truth, changed = tasks.resolve(Bits), Bits().reset()[0], {}
    spread = {"bits": np.full((6, 6, 2), 0.3), "codes": np.full(50, 2.0)}
    for level in (0.05, 0.1, 0.2):
        seen = []
        watch = lambda frame, seen=seen: seen.append({k: v[frame.alive] for k, v in frame.obs.items()})  # noqa: E731
        rollout.play(None, disturbances.disturbed("noise", level, task, spread, 0), SEEDS, mode="uniform", watch=watch)
        bits, codes = (np.concatenate([one[key] for one in seen]) for key in ("bits", "codes"))
        changed[level] = bits != truth["bits"]
        assert abs(changed[level].mean() - level) < 4 * np.sqrt(level * (1 - level) / bits.size)
        off, wanted = codes.astype(float) - 5, (2 * level) ** 2
        assert abs(off.mean()) < 4 * np.sqrt(wanted / off.size)
        assert abs((off**2).mean() - wanted) < 4 * np.sqrt(wanted / off.size)
        assert (codes.dtype, bits.dtype) == (np.uint8, bool)
    assert changed[0.2][changed[0.1]].all()
    assert changed[0.1][changed[0.05]].all()
    told = disturbances.unit("noise", task.spec)
    assert told == "standard deviations in whole numbers, probability of a flipped bit"
    assert disturbances.unit("noise", TASK.spec) == "standard deviations"
    assert disturbances.unit("delay", task.spec) == "steps"


def test_what_does_not_apply_is_said():
    digits = tasks.resolve("digits")
    assert disturbances.obstacle("noise", digits) == ""
    assert "one row each" in disturbances.obstacle("delay", digits)
    assert "no such constant" in disturbances.obstacle("gravity", TASK)
    assert disturbances.obstacle("gravity", tasks.resolve("CartPole-v1")) == ""


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown disturbance 'stiky'; did you mean 'sticky'\?"):
        disturbances.check(("stiky",))
    assert disturbances.check(()) == tuple(DISTURBANCES)
    assert disturbances.check(("delay", "noise")) == ("noise", "delay"), "in their own order"


# ---------------------------------------------------------------- another world


def built(name, env, level):
    made = dynamics.shifted(name, level, tasks.resolve(env)).make()
    made.reset(seed=0)
    return made.unwrapped


def test_constants_are_those_of_the_environments():
    assert built("gravity", "CartPole-v1", 1.25).gravity == pytest.approx(12.25)
    pole = built("length", "CartPole-v1", 2.0)
    assert (pole.length, pole.polemass_length) == (1.0, 0.1)
    heavy = built("mass", "CartPole-v1", 2.0)
    assert (heavy.total_mass, heavy.polemass_length) == pytest.approx((1.2, 0.1))
    assert built("mass", "Pendulum-v1", 0.5).m == 0.5
    acrobot = built("length", "Acrobot-v1", 2.0)
    lengths = ("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_COM_POS_1", "LINK_COM_POS_2")
    assert [getattr(acrobot, name) for name in lengths] == [2.0, 2.0, 1.0, 1.0]
    assert type(acrobot).LINK_LENGTH_1 == 1.0, "other environments keep theirs"


def test_an_acrobot_of_another_size_falls_as_a_scaled_body_does():
    """Left to itself from rest, its angles accelerate with g / l: by 1 / level where all lengths are scaled, by nothing
    where all masses are."""
    left = np.array([0.7, -0.4, 0.0, 0.0, 0.0])
    plain, longer, heavier = (
        np.array(built(name, "Acrobot-v1", level)._dsdt(left)[2:4])
        for name, level in (("length", 1.0), ("length", 2.0), ("mass", 2.0))
    )
    np.testing.assert_allclose(longer, plain / 2, rtol=1e-12)
    np.testing.assert_allclose(heavier, plain, rtol=1e-12)


def test_a_longer_pendulum_swings_slower():
    """thddot = 3 g / (2 l) sin th + 3 u / (m l^2): from th = 1 at rest one step of .05 s gives that times .05."""
    for length in (1.0, 2.0):
        env = built("length", "Pendulum-v1", length)
        env.state = np.array([1.0, 0.0])
        env.step(np.zeros(1, np.float32))
        assert env.state[1] == pytest.approx(15 / length * np.sin(1.0) * 0.05)


def test_mujoco_models_are_scaled_whole():
    pytest.importorskip("mujoco", reason='pip install "limbeck[envs]"')
    plain, heavy, smooth, light = (
        built(name, "Swimmer-v5", level)
        for name, level in (("mass", 1.0), ("mass", 2.0), ("friction", 0.5), ("gravity", 0.8))
    )
    np.testing.assert_allclose(heavy.model.body_mass, 2 * plain.model.body_mass)
    np.testing.assert_allclose(heavy.model.body_subtreemass, 2 * plain.model.body_subtreemass)
    np.testing.assert_allclose(smooth.model.geom_friction, plain.model.geom_friction / 2)
    np.testing.assert_allclose(light.model.opt.gravity, 0.8 * plain.model.opt.gravity)


def test_lunarlander_gets_wind_and_gravity():
    pytest.importorskip("Box2D", reason='pip install "limbeck[envs]"')
    windy = built("wind", "LunarLander-v3", 20.0)
    assert (windy.enable_wind, windy.wind_power) == (True, 20.0)
    assert built("gravity", "LunarLander-v3", 1.1).world.gravity[1] == pytest.approx(-11.0)


def test_a_shifted_task_collects_in_the_same_world_as_it_plays():
    task = tasks.resolve("CartPole-v1")
    assert dynamics.shifted("gravity", 2.0, replace(task, pool=lambda count, seeds: None)).pool is None
