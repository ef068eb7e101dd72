"""What keeps students from learning rows by heart, each against an answer from outside; and runs with it on, killed."""

import itertools
import math
import signal

import numpy as np
import pytest
import torch
from cli_cases import fingerprint, killed_at, limbeck, tiny
from gymnasium import spaces as gs
from torch.nn import functional

from limbeck import batches, distributions, imitation, objective, spaces, tables
from limbeck.batches import Draw, Pace, Regularising
from limbeck.contracts import Batch, Spec, View
from limbeck.dataset import Dataset
from limbeck.imitation import Table
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port

TASK = "toy"
KL = objective.mixture("kl", 0.0)
GREY, COLOUR = gs.Box(0, 255, (9, 10), np.uint8), gs.Box(0, 255, (9, 10, 3), np.uint8)
FIRST = gs.Box(0, 255, (3, 9, 10), np.uint8)


def port_for(space, view=View(), actions=3):
    action = gs.Discrete(actions)
    return Port(Spec(space, action, TASK), view, spaces.head_for(action), spaces.flat_size(space, view) * view.history)


def plain(rows=400, actions=3, seed=0, temperature=1.0):
    """A table of Gaussian inputs [N, 4] whose labels a random quadratic teacher gives, and its port."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    logits = temperature * (x @ rng.normal(size=(4, actions)) + (x**2) @ rng.normal(size=(4, actions)))
    port = port_for(gs.Box(-9, 9, (4,), np.float32), actions=actions)
    labels = {"params": torch.from_numpy(distributions.canonical(port.head, logits.astype(np.float32))[0])}
    first = torch.arange(rows) % 10 == 0
    return Table(TASK, torch.from_numpy(x), first, labels, {"temperature": torch.tensor(1.0)}, port.head), port


def pictures(folder, space, view):
    """Two episodes of random pictures in a table, and their port."""
    port, rng = port_for(space, view), np.random.default_rng(0)
    data = Dataset(folder, TASK)
    obs = rng.integers(0, 256, (20, *space.shape)).astype(np.uint8)
    params = distributions.canonical(port.head, rng.normal(size=(20, 3)).astype(np.float32))[0]
    data.add(0, {"obs": obs, "teacher/params": params, "first": np.arange(20) % 10 == 0}, {})
    return tables.table(data, port, port.head, tables.normaliser_of(data, port), 1.0), port, obs


# ---------------------------------------------------------------- pixel shift


@pytest.mark.parametrize("space", [GREY, COLOUR, FIRST])
def test_a_shift_is_the_crop_of_a_padded_picture(space):
    """torch's replication padding and a window of it: how Kostrikov et al. 2020 shift."""
    rng, most = np.random.default_rng(0), 3
    raw = rng.integers(0, 256, (50, *space.shape)).astype(np.float32)
    moves = rng.integers(-most, most + 1, (50, 2))
    beside = rng.normal(size=(50, 5)).astype(np.float32)
    image = spaces.image_of(gs.Dict({"a": gs.Box(-9, 9, (2,)), "b": space, "c": gs.Box(-9, 9, (3,))}))
    frames = np.concatenate([beside[:, :2], raw.reshape(50, -1), beside[:, 2:]], axis=1)
    got = tables.shifted(frames, moves, image)
    channels_first = space is FIRST
    nchw = torch.from_numpy(raw if channels_first else raw.reshape(50, 9, 10, -1).transpose(0, 3, 1, 2))
    padded = functional.pad(nchw, (most,) * 4, mode="replicate")
    for row, picture, (down, right) in zip(got, padded, moves, strict=True):
        wanted = picture[:, most - down : most - down + 9, most - right : most - right + 10]
        wanted = wanted if channels_first else wanted.permute(1, 2, 0)
        assert np.array_equal(row[2:-3], wanted.numpy().reshape(-1))
    assert np.array_equal(got[:, [0, 1, -3, -2, -1]], beside)


@pytest.mark.parametrize("padding", ["repeat", "zero"])
def test_all_frames_of_a_row_move_alike_and_labels_stay(padding, tmp_path):
    table, port, obs = pictures(tmp_path, GREY, View(history=3, padding=padding))
    family = families.build(parse(["cnn:4k3:6"]), {TASK: port}, 0)
    pace = Pace(1, 64, 1e-3, 1.0, regularising=Regularising(shift=2))
    still = batches.rows(table, port, Pace(1, 64, 1e-3, 1.0), Draw(family, False, True, 0, 0))
    moved = batches.rows(table, port, pace, Draw(family, False, True, 0, 0))
    assert torch.equal(still.labels["params"], moved.labels["params"])
    before, after = (b.inputs.reshape(64, 3, 9, 10) for b in (still, moved))
    inner = (slice(None), slice(2, -2), slice(2, -2))
    found = set()
    for one, other in zip(before, after, strict=True):
        fits = [
            (down, right)
            for down, right in itertools.product(range(-2, 3), repeat=2)
            if torch.equal(torch.roll(one, (down, right), (1, 2))[inner], other[inner])
        ]
        assert len(fits) == 1
        found.update(fits)
    assert len(found) > 12, "nearly all 25 moves occur among 64 rows"
    assert obs.dtype == np.uint8


def test_a_stretch_moves_as_one(tmp_path):
    table, port, _ = pictures(tmp_path, GREY, View())
    family = families.build(parse(["cnn:4k3:6-gru3"]), {TASK: port}, 0)
    pace = Pace(1, 40, 1e-3, 1.0, sequence=5, burn_in=1, regularising=Regularising(shift=2))
    moved = batches.sequences(table, port, pace, Draw(family, True, True, 0, 0)).inputs.reshape(5, 8, 9, 10)
    still = batches.sequences(
        table, port, Pace(1, 40, 1e-3, 1.0, sequence=5, burn_in=1), Draw(family, True, True, 0, 0)
    ).inputs.reshape(5, 8, 9, 10)
    for column in range(8):
        fits = [
            move
            for move in itertools.product(range(-2, 3), repeat=2)
            if torch.equal(torch.roll(still[:, column], move, (1, 2))[:, 2:-2, 2:-2], moved[:, column, 2:-2, 2:-2])
        ]
        assert len(fits) == 1


# ---------------------------------------------------------------- weight decay, dropout, running mean


def test_weight_decay_is_that_of_torchs_adamw():
    table, port = plain()
    family = families.build(parse(["mlp:6"]), {TASK: port}, 0)
    rows = family.stacks[0]
    weights = torch.nn.Parameter(rows.theta.clone())
    outside = torch.optim.AdamW([weights], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    pace = Pace(25, 32, 1e-2, 1e9, regularising=Regularising(weight_decay=0.3))
    draw = Draw(family, False, False, 0, 0)
    for _ in range(25):
        batch = batches.rows(table, port, pace, draw)
        outside.zero_grad()
        said = rows.stack.forward(weights, TASK, batch.inputs, None)
        objective.evaluate(KL, said, batch, table.head).sum().backward()
        outside.step()
    imitation.imitate(family, {TASK: table}, KL, pace, 0, 0)
    assert torch.allclose(rows.theta, weights.detach(), rtol=0, atol=2e-6)
    free = families.build(parse(["mlp:6"]), {TASK: port}, 0)
    imitation.imitate(free, {TASK: table}, KL, Pace(25, 32, 1e-2, 1e9), 0, 0)
    assert rows.theta.norm() < 0.97 * free.stacks[0].theta.norm()


def test_dropout_zeroes_its_share_keeps_the_mean_and_is_gone_at_export():
    table, port = plain()
    pace = Pace(60, 64, 1e-2, 1.0, regularising=Regularising(dropout=0.3))
    drop = imitation._dropout(pace, 0, 0)
    hidden = torch.ones(3, 4000, 10)
    kept = drop(hidden)
    share = (kept == 0).float().mean().item()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 40_000)
    assert torch.allclose(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert torch.equal(kept[0], kept[2]), "members lose the same units, as they would alone"
    family = families.build(parse(["mlp:16@2"]), {TASK: port}, 0)
    imitation.imitate(family, {TASK: table}, KL, pace, 0, 0)
    alone = families.build(parse(["mlp:16@2"])[1:], {TASK: port}, 0)
    imitation.imitate(alone, {TASK: table}, KL, pace, 0, 0)
    name = alone.members[0].name
    assert np.allclose(family.row(name), alone.row(name), atol=2e-5)
    rows = family.stacks[0]
    said = rows.stack.forward(rows.theta, TASK, table.inputs[None], None)[1, 0].numpy()
    policy = NumpyPolicy(family.blueprint(name, TASK))
    shown = policy(table.inputs.numpy(), policy.initial_state(table.rows), np.ones(table.rows, bool)).params
    assert np.allclose(shown, said, atol=1e-5)
    plainly = families.build(parse(["mlp:16@2"]), {TASK: port}, 0)
    imitation.imitate(plainly, {TASK: table}, KL, Pace(60, 64, 1e-2, 1.0), 0, 0)
    assert np.abs(plainly.row(name) - family.row(name)).max() > 1e-2, "it acted in training"


def test_the_running_mean_is_the_recurrence_over_all_steps_and_travels_in_checkpoints():
    table, port = plain()
    pace = Pace(1, 32, 1e-2, 1.0, regularising=Regularising(average=0.9))
    family = families.build(parse(["mlp:4@2", "linear"]), {TASK: port}, 0)
    wanted = None
    for number in range(30):
        imitation.imitate(family, {TASK: table}, KL, pace, number, 0)
        theta = family.stacks[0].theta.double()
        decay = min(0.9, (2 + number) / (11 + number))
        wanted = theta if wanted is None else decay * wanted + (1 - decay) * theta
    assert torch.allclose(family.stacks[0].beside["average"].double(), wanted, atol=1e-6)
    again = families.build(parse(["mlp:4@2", "linear"]), {TASK: port}, 0)
    again.from_arrays(family.to_arrays())
    imitation.imitate(family, {TASK: table}, KL, pace, 30, 0)
    imitation.imitate(again, {TASK: table}, KL, pace, 30, 0)
    for one, other in zip(family.stacks, again.stacks, strict=True):
        assert torch.equal(one.beside["average"], other.beside["average"])
    family.keep([family.members[1].name])
    assert family.stacks[0].beside["average"].shape == family.stacks[0].theta.shape


# ---------------------------------------------------------------- adversarial consistency


def vertices_worst(rows, k, table, port, radius):
    """[N] the largest KL over the corners of the ball: the maximum of a convex function, for a linear student exactly."""
    corners = torch.tensor(list(itertools.product((-radius, radius), repeat=4)))
    found = []
    for corner in corners:
        moved = Table(TASK, table.inputs + corner, table.first, table.labels, table.scalars, table.head)
        found.append(imitation.disagreements(rows, moved, KL[0], torch.arange(table.rows))[k])
    return torch.stack(found).max(0).values


def worst_found(rows, k, table, radius, ascents):
    labels = {key: column[None] for key, column in table.labels.items()} | table.scalars
    batch = Batch(TASK, table.inputs[None], None, None, labels)
    return imitation.worst_inputs(rows, k, batch, table.head, KL[0], radius, ascents)[0]


def test_ascent_finds_nearly_the_worst_corner_and_stays_in_the_ball():
    table, port = plain()
    family = families.build(parse(["linear"]), {TASK: port}, 0)
    imitation.imitate(family, {TASK: table}, KL, Pace(200, 64, 3e-2, 1.0), 0, 0)
    rows, radius = family.stacks[0], 0.3
    exact = vertices_worst(rows, 0, table, port, radius)
    clean = imitation.disagreements(rows, table, KL[0], torch.arange(table.rows))[0]
    for ascents in (1, 3):
        inputs = worst_found(rows, 0, table, radius, ascents)
        assert (inputs - table.inputs).abs().max() <= radius * (1 + 1e-6)
        moved = Table(TASK, inputs, table.first, table.labels, table.scalars, table.head)
        found = imitation.disagreements(rows, moved, KL[0], torch.arange(table.rows))[0]
        assert (found <= exact + 1e-5).all()
        assert found.mean() > clean.mean() + 0.9 * (exact.mean() - clean.mean())


def test_adversarial_training_lowers_the_worst_loss_in_the_ball():
    table, port = plain(rows=120, temperature=3.0)
    fresh, _ = plain(rows=120, temperature=3.0)
    radius, worst = 0.3, {}
    for weight in (0.0, 2.0):
        family = families.build(parse(["mlp:32@2"]), {TASK: port}, 0)
        pace = Pace(150, 64, 1e-2, 1.0, share=1.0, regularising=Regularising(adversarial=weight, radius=radius))
        imitation.imitate(family, {TASK: table}, KL, pace, 0, 0)
        worst[weight] = [vertices_worst(family.stacks[0], k, fresh, port, radius).mean().item() for k in range(2)]
    assert max(worst[2.0]) < 0.7 * min(worst[0.0])


def test_a_member_meets_its_own_adversary():
    table, port = plain()
    members, pace = parse(["mlp:6@2"]), Pace(20, 32, 1e-2, 1.0, share=1.0, regularising=Regularising(adversarial=1.0))
    both, alone = (families.build(some, {TASK: port}, 0) for some in (members, members[1:]))
    for family in (both, alone):
        imitation.imitate(family, {TASK: table}, KL, pace, 0, 0)
    assert np.allclose(both.row(members[1].name), alone.row(members[1].name), atol=2e-5)


# ---------------------------------------------------------------- rows by disagreement


def test_rows_are_drawn_by_disagreement_and_weighed_back():
    table, port = plain(rows=50)
    family = families.build(parse(["mlp:4@2", "linear"]), {TASK: port}, 0)
    imitation.imitate(family, {TASK: table}, KL, Pace(50, 32, 1e-2, 1.0), 0, 0)
    pace = Pace(1, 40_000, 1e-2, 1.0, priority=0.6, share=1.0)
    draw = Draw(family, False, False, 0, 0)
    preferred = imitation._preferred(draw, table, KL, pace)
    kl = []
    for member in family.members:
        policy = NumpyPolicy(family.blueprint(member.name, TASK))
        said = policy(table.inputs.numpy(), policy.initial_state(50), np.ones(50, bool)).params
        kl.append(distributions.kl(port.head, table.labels["params"].numpy(), said))
    wanted = (np.mean(kl, axis=0) + 0.001) ** 0.6
    wanted /= wanted.sum()
    assert np.allclose(np.diff(preferred.cumulative, prepend=0), wanted, atol=1e-6)
    draw.preferences[TASK] = preferred
    batch = batches.rows(table, port, pace, draw)
    row = (batch.inputs[0][:, None] == table.inputs[None]).all(-1).float().argmax(1).numpy()
    counts = np.bincount(row, minlength=50)
    assert ((counts - 40_000 * wanted) ** 2 / (40_000 * wanted)).sum() < 101  # chi-square, 49 degrees, 1 in 100,000
    weights = batch.mask[0].numpy()
    assert (weights * (row == 7)).sum() / weights.sum() == pytest.approx(1 / 50, rel=0.2), (
        "every row counts alike again"
    )
    assert np.allclose(np.bincount(row, weights, 50) / weights.sum(), 1 / 50, rtol=0.35)


def test_held_out_rows_are_never_drawn():
    table, port = plain(rows=60)
    held = torch.zeros(60, dtype=torch.bool)
    held[10:30] = True
    object.__setattr__(table, "held", held)
    table.inputs[held] = 100.0
    for text, recurrent in (("mlp:4", False), ("gru:3", True)):
        family = families.build(parse([text]), {TASK: port}, 0)
        pace = Pace(1, 2000, 1e-2, 1.0, sequence=10, burn_in=2)
        batch = Draw(family, recurrent, False, 0, 0).batch(table, port, pace)
        count = batch.mask if batch.mask is not None else torch.ones(batch.inputs.shape[:2])
        assert (count[(batch.inputs == 100.0).all(-1)] == 0).all()
        assert count.sum() > 500
    draw = Draw(families.build(parse(["mlp:4"]), {TASK: port}, 0), False, False, 0, 0)
    assert not set(imitation._preferred(draw, table, KL, Pace(1, 8, 1e-2, 1.0, priority=1.0)).rows) & set(range(10, 30))


def test_disagreement_along_episodes_is_what_the_frozen_student_says_step_by_step():
    table, port = plain(rows=60)
    family = families.build(parse(["gru:3"]), {TASK: port}, 0)
    imitation.imitate(family, {TASK: table}, KL, Pace(30, 40, 1e-2, 1.0, sequence=10, burn_in=2), 0, 0)
    policy = NumpyPolicy(family.blueprint("gru-3-s0", TASK))
    state, said = policy.initial_state(1), []
    for t in range(60):
        output = policy(table.inputs[t : t + 1].numpy(), state, table.first[t : t + 1].numpy())
        state = output.state
        said.append(output.params[0])
    wanted = distributions.kl(port.head, table.labels["params"].numpy(), np.stack(said))
    which = torch.tensor([3, 59, 12, 10, 35])
    got = imitation.disagreements(family.stacks[0], table, KL[0], which)[0]
    assert np.allclose(got.numpy(), wanted[which.numpy()], atol=1e-5)


# ---------------------------------------------------------------- killed with all of it on


@pytest.mark.slow
def test_a_run_with_everything_on_is_resumed_bit_for_bit(tmp_path):
    recipe = tiny(
        tmp_path,
        students=["mlp:4@2", "mlp:2@2"],
        imitate={
            "priority": 0.6, "weight_decay": 0.01, "dropout": 0.1, "adversarial": 0.5, "average": 0.99,
            "validation_share": 0.3, "keep_best": True, "stop": "plateau", "patience": 3, "stop_gain": 0.0,
        },
        collect={"driver": "auto"},
        polish={"enabled": False},
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert limbeck("distill", recipe, "--out", whole).returncode == 0
    for point in (
        "before:dataset/CartPole-v1/round-00001:1",
        "after:records/driving:1",
        "before:checkpoints/round-000003:1",
        "after:checkpoints/round-000003:1",
    ):
        assert killed_at(point, "distill", recipe, "--out", cut).returncode == -signal.SIGKILL
    done = limbeck("distill", recipe, "--out", cut)
    assert done.returncode == 0, done.stderr
    assert fingerprint(cut) == fingerprint(whole)
