"""Minibatches against the policy that will see the same observations one by one; masks, agents, bytes, burn-in."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import batches, blueprints, distributions, imitation, objective, spaces
from limbeck.contracts import Batch, Spec, View
from limbeck.dataset import Dataset, observation_columns
from limbeck.imitation import Frames, Pace
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.testing import check_policy

TASK, ROUNDS, ROWS = "toy", 2, 20
PICTURE = gs.Box(0, 255, (9, 10, 3), np.uint8)
FIRST_CHANNELS = gs.Box(0, 255, (3, 9, 10), np.uint8)
GREY = gs.Box(0, 255, (9, 10), np.uint8)
MIXED = gs.Dict({"a": gs.Box(-9, 9, (2,), np.float32), "image": PICTURE, "z": gs.Discrete(3)})
MASKED = gs.Dict({"image": PICTURE, "legal": gs.MultiBinary(3)})
SMALL_CNN = "cnn:4k3s2-5k2:cp2-6"


def port_for(space, view=View(), action=None, kind=None, agents=1):
    action = action or gs.Discrete(3)
    spec = Spec(space, action, TASK)
    inputs = spaces.flat_size(space, view) * view.history
    return Port(spec, view, spaces.head_for(action, kind), inputs, agents)


def stored(folder, port, seed=0):
    """Two rounds of episodes of four rows, labelled at random, with one action forbidden where the view has a mask."""
    port.spec.observation_space.seed(seed)
    rng = np.random.default_rng(seed)
    data = Dataset(folder, TASK)
    for number in range(ROUNDS):
        rows = [port.spec.observation_space.sample() for _ in range(ROWS)]
        dicts = isinstance(rows[0], dict)
        obs = {k: np.stack([row[k] for row in rows]) for k in rows[0]} if dicts else np.stack(rows)
        params = rng.normal(size=(ROWS, port.head.width)).astype(np.float32)
        if port.view.mask:
            obs[port.view.mask] = np.ones((ROWS, port.head.width), np.int8)
            obs[port.view.mask][np.arange(ROWS), rng.integers(port.head.width, size=ROWS)] = 0
            params = distributions.masked(params, obs[port.view.mask] > 0)
        first = np.arange(ROWS) % 4 == 0
        labels = distributions.canonical(port.head, params)[0]
        data.add(number, {**observation_columns(obs), "teacher/params": labels, "first": first}, {})
    return data


def learned(folder, text, port, steps=8):
    """A family of two after a few gradient steps, so that no weight or bias is still what it was."""
    data = stored(folder, port)
    family = families.build(parse([f"{text}@2"]), {TASK: port}, 1)
    family.normalisers[TASK] = imitation.normaliser_of(data, port)
    table = imitation.table(data, port, port.head, family.normalisers[TASK], 1.0)
    loss = "executed_huber" if not port.head.discrete else "kl"
    pace = Pace(steps, 32, 1e-2, 1.0, sequence=12, burn_in=3)
    imitation.imitate(family, {TASK: table}, objective.mixture(loss, 0.0), pace, 0, 1)
    return family, table, data


def rolled(policy, data):
    """[N, W] what a policy says when it meets the stored observations one after another."""
    obs, first = data.observations(), data.first()
    state, said = policy.initial_state(1), []
    for t in range(data.rows):
        row = {k: v[t : t + 1] for k, v in obs.items()} if isinstance(obs, dict) else obs[t : t + 1]
        output = policy(row, state, first[t : t + 1])
        state = output.state
        said.append(output.params[0])
    return np.stack(said)


CASES = {
    "linear": ("linear", PICTURE, View()),
    "mlp": ("mlp:6", PICTURE, View()),
    "mlp history": ("mlp:6:tanh", GREY, View(history=3)),
    "mlp history zero": ("mlp:6:tanh", GREY, View(history=3, padding="zero")),
    "mlp floats history zero": ("mlp:6", gs.Box(-1, 3, (4,), np.float32), View(history=3, padding="zero")),
    "mlp softplus": ("mlp:6:softplus", gs.Box(-1, 3, (4,), np.float32), View()),
    "gru": ("gru:5", PICTURE, View()),
    "gru history zero": ("gru:5", gs.Box(-1, 3, (4,), np.float32), View(history=2, padding="zero")),
    "cnn hwc": (SMALL_CNN, PICTURE, View()),
    "cnn chw": (SMALL_CNN, FIRST_CHANNELS, View()),
    "cnn one channel": ("cnn:3k3:8x4:tanh", GREY, View()),
    "cnn to the head": ("cnn:3k3s3", PICTURE, View()),
    "cnn gru": ("cnn:3k3s3:6-gru4", PICTURE, View()),
    "cnn gru alone": ("cnn:3k3s3:gru4", MIXED, View(keys=("image", "a"))),
    "cnn bool": ("cnn:4k3:6", gs.MultiBinary((6, 7, 4)), View()),
    "cnn bool box": ("cnn:4k3:6", gs.Box(0, 1, (6, 7), np.bool_), View()),
    "cnn float": ("cnn:4k3:6", gs.Box(-2, 4, (6, 7, 2), np.float32), View()),
    "cnn ints": ("cnn:4k3:6", gs.Box(0, 10, (7, 7, 3), np.int64), View()),
    "cnn beside": (SMALL_CNN, MIXED, View()),
    "cnn beside to the head": ("cnn:3k3s3", MIXED, View(keys=("z", "image"))),
    "cnn history": (SMALL_CNN, GREY, View(history=3)),
    "cnn history zero": (SMALL_CNN, GREY, View(history=3, padding="zero")),
    "cnn history chw": (SMALL_CNN, FIRST_CHANNELS, View(history=2)),
    "cnn history zero one channel": (SMALL_CNN, gs.Box(0, 255, (9, 10, 1), np.uint8), View(history=2, padding="zero")),
    "cnn mask": (SMALL_CNN, MASKED, View(mask="legal")),
    "conv1d": ("conv1d:4k3s2-3k2:5", gs.Box(-1, 3, (4,), np.float32), View(history=8)),
    "conv1d zero": ("conv1d:4k3:cp2-5", gs.Box(-1, 3, (4,), np.float32), View(history=5, padding="zero")),
    "conv1d to the head": ("conv1d:4k3:tanh", gs.Dict({"x": gs.MultiBinary(6), "y": gs.Discrete(2)}), View(history=3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_frozen_member_says_step_by_step_what_the_stack_says_in_a_batch(name, tmp_path):
    text, space, view = CASES[name]
    port = port_for(space, view)
    family, table, data = learned(tmp_path, text, port)
    rows = family.stacks[0]
    inputs = table.gather(torch.arange(table.rows), rows.stack.pixels)[:, None]
    said = rows.stack.forward(rows.theta, TASK, inputs, table.first[:, None])[:, :, 0]
    if view.mask:
        said = torch.where(table.labels["allowed"], said, distributions.FORBIDDEN)
    for k, member in enumerate(rows.members):
        blueprint = family.blueprint(member.name, TASK)
        blueprints.check(blueprint)
        check_policy(NumpyPolicy(blueprint))
        wanted = said[k].numpy()
        assert wanted[wanted > distributions.FORBIDDEN].std() > 1e-3, "a constant agrees with anything"
        assert np.allclose(rolled(NumpyPolicy(blueprint), data), wanted, atol=1e-5)
        folded = blueprints.fold(blueprint)
        assert np.allclose(rolled(NumpyPolicy(folded), data), wanted, rtol=1e-5, atol=5e-5)


def test_what_is_stored_beside_the_weights(tmp_path):
    pure, _, _ = learned(tmp_path / "a", SMALL_CNN, port_for(PICTURE))
    assert pure.blueprint(pure.members[0].name, TASK).normaliser is None
    beside, _, _ = learned(tmp_path / "b", SMALL_CNN, port_for(MIXED))
    assert beside.blueprint(beside.members[0].name, TASK).normaliser is None
    along, _, _ = learned(tmp_path / "c", "conv1d:4k3:5", port_for(gs.Box(-1, 3, (4,), np.float32), View(history=5)))
    blueprint = along.blueprint(along.members[0].name, TASK)
    assert blueprint.normaliser is not None
    assert blueprints.fold(blueprint).normaliser is None


def test_numbers_far_from_zero_beside_an_image_keep_their_normaliser(tmp_path):
    kelvin = gs.Dict({"image": PICTURE, "t": gs.Box(290.0, 291.0, (2,), np.float32)})
    family, table, data = learned(tmp_path, SMALL_CNN, port_for(kelvin))
    blueprint, rows = family.blueprint(family.members[0].name, TASK), family.stacks[0]
    normaliser = blueprint.normaliser
    assert (normaliser.mean[:270] == 0).all()
    assert (normaliser.scale[:270] == 1).all()
    assert (normaliser.mean[270:] > 289).all()
    wanted = rows.stack.forward(rows.theta, TASK, table.gather(torch.arange(table.rows), True)[None], None)[0, 0]
    assert np.allclose(rolled(NumpyPolicy(blueprint), data), wanted.numpy(), atol=1e-5)


def test_folding_leaves_zeros_before_an_episode_alone(tmp_path):
    family, _, data = learned(
        tmp_path, "mlp:6", port_for(gs.Box(1, 3, (4,), np.float32), View(history=3, padding="zero"))
    )
    blueprint = family.blueprint(family.members[0].name, TASK)
    one, two = (rolled(NumpyPolicy(b), data) for b in (blueprint, blueprints.fold(blueprint)))
    assert np.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("spec", [SMALL_CNN, "cnn:3k3s3:6-gru4", "cnn:4k3-4k2:tanh"])
def test_a_convolutional_member_in_the_stack_equals_the_member_alone(spec, tmp_path):
    port = port_for(PICTURE)
    data = stored(tmp_path, port)
    normaliser = imitation.normaliser_of(data, port)
    table = imitation.table(data, port, port.head, normaliser, 1.0)
    members, rows = parse([f"{spec}@3", "mlp:6", "gru:4"]), {}
    pace = Pace(15, 16, 3e-3, 1.0, sequence=8, burn_in=2)
    for some in (members, *([m] for m in members)):
        family = families.build(some, {TASK: port}, 3)
        imitation.imitate(family, {TASK: table}, objective.mixture("kl", 0.0), pace, 0, 3)
        rows[len(some)] = {**rows.get(len(some), {}), **{m.name: family.row(m.name) for m in family.members}}
    for name, alone in rows[1].items():
        assert np.allclose(rows[5][name], alone, atol=2e-5), name


def test_bytes_stay_in_their_files(tmp_path):
    port = port_for(GREY, View(history=3, padding="zero"))
    data = stored(tmp_path, port)
    table = imitation.table(data, port, port.head, imitation.normaliser_of(data, port), 1.0)
    assert isinstance(table.inputs, Frames)
    assert all(
        np.shares_memory(shard, kept["obs"]) for shard, kept in zip(table.inputs.shards, data.shards, strict=True)
    )
    assert all(shard.dtype == np.uint8 for shard in table.inputs.shards)
    floats = port_for(gs.Box(-1, 3, (4,), np.float32))
    data = stored(tmp_path / "floats", floats)
    assert isinstance(
        imitation.table(data, floats, floats.head, imitation.normaliser_of(data, floats), 1.0).inputs, torch.Tensor
    )


def test_frames_of_several_rounds_are_what_floats_prepared_at_once_would_be(tmp_path):
    port = port_for(GREY, View(history=3))
    data = stored(tmp_path, port)
    normaliser = imitation.normaliser_of(data, port)
    whole = data.column("obs").reshape(ROUNDS * ROWS, -1).astype(np.float64)
    assert np.allclose(normaliser.mean, whole.mean(axis=0), rtol=1e-6)
    assert np.allclose(normaliser.scale, whole.std(axis=0), rtol=1e-6)
    frames = imitation.table(data, port, port.head, normaliser, 1.0)
    index = torch.tensor([[0, 1, 5], [39, 20, 22]])
    for pixels, mean, scale in ((False, normaliser.mean, normaliser.scale), (True, 0.0, 255.0)):
        ready = (whole - mean) / scale
        for place, row in zip(frames.gather(index, pixels).reshape(6, 3, -1), index.reshape(-1).tolist(), strict=True):
            begin = row - row % 4
            wanted = ready[[max(row - 2, begin), max(row - 1, begin), row]]
            assert np.allclose(place.numpy(), wanted, atol=1e-5)


def test_a_forbidden_action_gets_no_gradient_and_the_loss_is_that_of_the_others(tmp_path):
    family, table, _ = learned(tmp_path, "linear", port_for(MASKED, View(mask="legal")))
    rows = family.stacks[0]
    allowed = table.labels["allowed"]
    assert allowed.sum() == 2 * table.rows
    student = rows.stack.forward(
        rows.theta, TASK, table.gather(torch.arange(table.rows), False)[None], None
    ).requires_grad_()
    labels = {key: column[None] for key, column in table.labels.items()} | table.scalars
    batch = Batch(TASK, torch.empty(0), None, None, labels)
    value = objective.evaluate(objective.mixture("kl", 0.0), student, batch, table.head)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert (gradient[:, :, ~allowed] == 0).all()
    assert (gradient[:, :, allowed] != 0).any()
    few_t = table.labels["params"][allowed].reshape(-1, 2).log_softmax(-1)
    few_s = student[:, 0][:, allowed].reshape(2, -1, 2).log_softmax(-1)
    assert torch.allclose(value, (few_t.exp() * (few_t - few_s)).sum(-1).mean(-1), rtol=1e-5)
    unmasked = {**labels, "params": torch.where(allowed, labels["params"], 5.0)}
    again = objective.evaluate(
        objective.mixture("kl", 0.0), student, Batch(TASK, batch.inputs, None, None, unmasked), table.head
    )
    assert torch.allclose(value, again), "what a teacher says of forbidden actions does not count"


@pytest.mark.parametrize(
    ("text", "space", "action", "kind"),
    [
        ("mlp:6", gs.Box(-2, 5, (3, 4), np.float32), gs.MultiDiscrete([3, 3, 3]), None),
        ("linear", gs.Box(-2, 5, (12,), np.float32), gs.MultiBinary(6), None),
        ("mlp:6", gs.Box(-2, 5, (3, 4), np.float32), gs.Box(-1, 1, (3, 2), np.float32), "tanh"),
        ("mlp:6", gs.Box(-2, 5, (3, 4), np.float32), gs.Box(-1, 1, (3, 2), np.float32), "deterministic"),
        ("cnn:4k3:6", gs.Box(0, 255, (3, 6, 7, 2), np.uint8), gs.MultiDiscrete([3, 3, 3]), None),
    ],
)
def test_many_agents_share_one_network(text, space, action, kind, tmp_path):
    port = port_for(space, action=action, kind=kind, agents=3)
    family, table, data = learned(tmp_path, text, port)
    rows, name = family.stacks[0], family.members[0].name
    inputs = table.gather(torch.arange(table.rows), rows.stack.pixels)
    said = rows.stack.forward(rows.theta, TASK, inputs[None], None)[0, 0].numpy()
    blueprint = family.blueprint(name, TASK)
    blueprints.check(blueprint)
    assert np.allclose(rolled(NumpyPolicy(blueprint), data), said, atol=1e-5)
    folded = blueprints.fold(blueprint)
    assert folded.normaliser is None
    assert np.allclose(rolled(NumpyPolicy(folded), data), said, atol=5e-5)
    turned = inputs.reshape(table.rows, 3, -1).roll(1, dims=1).reshape(table.rows, -1)
    other = rows.stack.forward(rows.theta, TASK, turned[None], None)[0, 0].numpy()
    wanted = np.roll(said.reshape(table.rows, 3, -1), 1, axis=1).reshape(table.rows, -1)
    assert np.allclose(other, wanted, atol=1e-6), "agents that change places change answers, and nothing else"
    mean = family.normalisers[TASK].mean.reshape(3, -1)
    assert (mean == mean[0]).all()


def test_rows_before_a_memory_could_warm_up_do_not_count(tmp_path):
    """Sequences against the plainest reading: known from an episode's start on, or after burn-in."""
    port = port_for(gs.Box(-1, 3, (4,), np.float32))
    data = stored(tmp_path, port)
    table = imitation.table(data, port, port.head, imitation.normaliser_of(data, port), 1.0)
    object.__setattr__(table, "first", torch.arange(table.rows) % 9 == 0)
    pace = Pace(1, 60, 1e-3, 1.0, sequence=6, burn_in=4)
    family = families.build(parse(["gru:3"]), {TASK: port}, 0)
    batch = batches.sequences(table, port, pace, batches.Draw(family, True, False, 0, 0))
    assert batch.inputs.shape == (6, 10, 4)
    for column in range(10):
        (begin,) = (table.inputs == batch.inputs[0, column]).all(-1).nonzero()[0].tolist()
        for t in range(6):
            starts = [s for s in range(begin, begin + t + 1) if table.first[s]]
            assert batch.mask[t, column].item() == float(bool(starts) or t >= 4)
            assert batch.first[t, column].item() == (t == 0 or bool(table.first[begin + t]))
            assert torch.equal(batch.inputs[t, column], table.inputs[begin + t])


def test_noise_disturbs_training_inputs_only(tmp_path):
    port, noisy = (port_for(PICTURE, View(noise=noise)) for noise in (0.0, 0.5))
    data = stored(tmp_path, port)
    table = imitation.table(data, port, port.head, imitation.normaliser_of(data, port), 1.0)
    family = families.build(parse([SMALL_CNN]), {TASK: port}, 0)
    pace = Pace(1, 64, 1e-3, 1.0)
    clean, disturbed = (
        batches.rows(table, p, pace, batches.Draw(family, False, True, 0, 0)).inputs for p in (port, noisy)
    )
    assert (disturbed - clean).std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("text", "history"), [("cnn:6k3s2-8k3:cp2-12", 1), ("conv1d:8k3-8k3:12", 8)])
def test_convolutional_students_learn_what_only_they_see_cheaply(text, history, tmp_path):
    """Which corner of a picture is bright; whether a sine has risen or fallen over the last steps."""
    rng = np.random.default_rng(0)
    if text.startswith("cnn"):
        corner, obs = rng.integers(4, size=600), rng.integers(0, 60, (600, 12, 12, 1)).astype(np.uint8)
        for image, c in zip(obs, corner, strict=True):
            row, column = rng.integers(4, size=2) + 6 * np.array(divmod(int(c), 2))
            image[row : row + 2, column : column + 2] = 250
        port = port_for(gs.Box(0, 255, (12, 12, 1), np.uint8), action=gs.Discrete(4))
        params, first = np.eye(4, dtype=np.float32)[corner] * 6, np.ones(600, bool)
    else:
        wave = np.sin(np.arange(600) / 5)[:, None] + 0.05 * rng.normal(size=(600, 1))
        port = port_for(gs.Box(-2, 2, (1,), np.float32), View(history=history), gs.Discrete(2))
        rises = np.cos(np.arange(600) / 5) > 0
        obs, params = wave.astype(np.float32), np.eye(2, dtype=np.float32)[rises.astype(int)] * 6
        first = np.arange(600) == 0
    data = Dataset(tmp_path, TASK)
    columns = {"obs": obs, "teacher/params": distributions.canonical(port.head, params)[0], "first": first}
    data.add(0, columns, {})
    family = families.build(parse([text]), {TASK: port}, 0)
    family.normalisers[TASK] = imitation.normaliser_of(data, port)
    table = imitation.table(data, port, port.head, family.normalisers[TASK], 1.0)
    pace, terms = Pace(300, 64, 5e-3, 1.0), objective.mixture("kl", 0.0)
    imitation.imitate(family, {TASK: table}, terms, pace, 0, 0)
    said = rolled(NumpyPolicy(family.blueprint(family.members[0].name, TASK)), data)
    assert (said.argmax(1) == params.argmax(1))[history:].mean() > 0.95
