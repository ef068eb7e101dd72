"""The `compress` part of a recipe: what each step makes, what it costs, that it continues, and what is refused at once."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import family_runs
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import blueprints, imitation, machine, objective, recipes, settings, storage
from limbeck.contracts import Head, Spec, View
from limbeck.dataset import open_dataset
from limbeck.errors import InputError
from limbeck.imitation import Table
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import choosing, compressing, finetuning, learn, proving
from limbeck.stages.compressing import Step, steps_of
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port

TEACHER = Path(__file__).parents[2] / "recipes" / "teachers" / "cartpole.safetensors"
ENV = "CartPole-v1"
PORT = Port(Spec(gs.Box(-9, 9, (4,), np.float32), gs.Discrete(2), ENV), View(), Head("categorical", (2,)), 4)
SHORT = ("imitate.rounds=2", "race.rounds=1", "compression.gradient_steps=16", "imitate.gradient_steps=12", "collect.steps=200")  # fmt: skip


def compressed(folder, students, steps, options=()):
    """A run up to its compressed members: the scene, all chosen ones, and the progress."""
    asked = [*SHORT, f"compress={steps}", *options]
    here, family, done = family_runs.imitated(folder, TEACHER, ENV, students, asked)
    with machine.steady(1):
        chosen, _ = choosing.choose(here, family)
        return here, *compressing.compress(here, family, chosen, done), done


def numbers(chosen):
    return {one.member.name: [a for layer in one.blueprint.layers for a in vars(layer).values() if isinstance(a, np.ndarray)]
            for one in chosen}  # fmt: skip


# ---------------------------------------------------------------- what a step is


def test_tables_of_a_recipe_are_steps(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: a\nenv: b\ncompress: [prune: .5, low_rank: 8, quantise: int4]\n")
    recipe = settings.recipe_from(recipes.read(path))
    assert recipe.compress == ("prune 0.5", "low_rank 8", "quantise int4")
    assert steps_of(recipe.compress) == (Step("prune", 0.5), Step("low_rank", rank=8), Step("quantise", width="int4"))
    assert tuple(step.words for step in steps_of(recipe.compress)) == recipe.compress
    recipes.write(path, recipe)
    assert settings.recipe_from(recipes.read(path)) == recipe
    given = settings.with_options({"teacher": "a", "env": "b"}, ["compress=prune=0.5,quantise: int4"])
    assert steps_of(settings.recipe_from(given).compress) == (Step("prune", 0.5), Step("quantise", width="int4"))


@pytest.mark.parametrize(("before", "step", "after"), [
    ("mlp:64x33:tanh", "prune 0.5", "mlp:32x17:tanh"), ("mlp:10", "prune 0.3", "mlp:7"), ("mlp:64x64", "low_rank 4", "mlp:64x64:r4"),
    ("mlp:64x64:r4", "quantise int2", "mlp:64x64:r4:int2"), ("nested:16x16:w8", "quantise int8", "mlp:8x8:int8"),
    ("mlp:8:int8", "quantise int4", "mlp:8:int4"), ("linear", "quantise ternary", "linear:ternary"),
    ("mlp:8:int8", "quantise mixed4", "mlp:8:mixed4"), ("gru:8:mixed4", "quantise mixed2", "gru:8:mixed2"),
    ("gru:8", "quantise int8", "gru:8:int8"), ("cnn:8k3:32-gru4", "quantise int8", "cnn:8k3:32-gru4:int8"),
    ("conv1d:8k3:16:tanh:int8", "quantise int4", "conv1d:8k3:16:tanh:int4"),
])  # fmt: skip
def test_what_a_step_makes(before, step, after):
    (found,) = steps_of([step])
    made = found.apply(parse([before])[0].architecture)
    assert replace(made, whole=()) == parse([after])[0].architecture


@pytest.mark.parametrize(("before", "step", "why"), [
    ("gru:8", "prune 0.5", "no dense network: gru"), ("cnn:8k3:32", "low_rank 2", "no dense network: cnn"), ("cnn:8k3:32:elu", "quantise int8", "no elu"), ("mlp:8:gelu", "quantise int8", "no gelu"), ("linear", "prune 0.5", "no hidden layer"),
    ("mlp:8:int8", "prune 0.5", "quantise is the last step"), ("mlp:64x64:r4", "prune 0.5", "prune comes before low_rank"),
    ("mlp:2", "prune 0.1", "no neuron goes"), ("mlp:8:int4", "quantise int4", "int4 already"), ("tree:leaves=4", "quantise int8", "no network: tree"),
    ("linear", "quantise mixed4", "one layer, of which mixed4 would be int8"), ("linear:int8", "quantise mixed2", "one layer"),
    *((f"mlp:8:{narrow}", f"quantise {wide}", f"its weights are {narrow} already, which is narrower: int8 > mixed4 > int4 > mixed2 > int2 > ternary")
      for narrow, wide in (("int4", "int8"), ("mixed4", "int8"), ("int4", "mixed4"), ("ternary", "int2"), ("int2", "mixed2"))),
])  # fmt: skip
def test_what_cannot_take_a_step(before, step, why):
    (found,) = steps_of([step])
    assert why in found.apply(parse([before])[0].architecture)


def test_why_a_step_cannot_be_is_one_clause_of_the_refusal():
    """It names no student again, ends without a full stop of its own, and recommends no other student."""
    spec = Spec(gs.Box(0, 255, (84, 84, 3), np.uint8), gs.Discrete(3))
    port = Port(spec, View(), Head("categorical", (3,)), 84 * 84 * 3)
    steps, task = steps_of(["quantise int8"]), SimpleNamespace(name="pictures")
    why = compressing._refusal(parse(["cnn:4k5"])[0], steps, task, port)
    assert re.fullmatch("quantise int8: a layer of int8 reads .* more than its sums can hold", why)


# ---------------------------------------------------------------- in a run


def test_every_step_makes_a_member_that_is_shipped_and_billed(tmp_path):
    _, chosen, after, before = compressed(
        tmp_path, ["mlp:16x16", "mlp:8:gelu", "linear"], "prune 0.5,quantise int8,quantise int4"
    )
    found = {one.member.name: one for one in chosen}
    name = "mlp-16x16-s0-prune0.5"
    assert set(found) == {"mlp-16x16-s0", name, f"{name}-int8", f"{name}-int8-int4", "mlp-8-gelu-s0", "linear-s0"}
    assert found[f"{name}-int8-int4"].lineage == ("mlp-16x16-s0", "prune 0.5", "quantise int8", "quantise int4")
    assert found["mlp-16x16-s0"].lineage == ()
    assert found[name].member.architecture.spec == "mlp:8x8"
    assert list(chosen) == choosing.by_size(chosen)
    assert after.gradient_steps == before.gradient_steps + 3 * 16
    records = [storage.read_json(tmp_path / "records" / f"compress-{n}.json") for n in range(3)]
    assert after.race_steps == before.race_steps + sum(r["race_steps"] for r in records)


def test_memories_and_histories_are_quantised_too(tmp_path):
    """The same weights, told apart at eight bits and trained on: nearly what the float student says of real episodes."""
    options = ("history=4", "compression.learning_rate=0.0001")
    _, chosen, *_ = compressed(tmp_path, ["gru:4", "conv1d:6k3:8"], "quantise int8", options)
    found = {one.member.name: one.blueprint for one in chosen}
    assert [layer.kind for layer in found["gru-4-s0-int8"].layers] == ["quantise", "quantised_gru", "readout"]
    assert [layer.kind for layer in found["conv1d-6k3-8-s0-int8"].layers] == ["quantise", "quantised_conv", "quantised", "readout"]  # fmt: skip
    data = open_dataset(tmp_path / "dataset", ENV, 2)
    raw, starts = np.asarray(data.observations()), np.asarray(data.first())
    for name in ("gru-4-s0", "conv1d-6k3-8-s0"):
        said = []
        for policy in (NumpyPolicy(found[name]), NumpyPolicy(found[f"{name}-int8"])):
            state, rows = policy.initial_state(1), []
            for frame, first in zip(raw, starts, strict=True):
                out = policy(frame[None], state, np.array([first]))
                state, rows = out.state, [*rows, out.params[0]]
            said.append(np.stack(rows))
        assert np.abs(said[1] - said[0]).mean() < 0.15 * said[0].std()


def test_the_first_layer_of_mixed_widths_has_8_bits(tmp_path):
    _, chosen, _, _ = compressed(tmp_path, ["mlp:8x8"], "quantise mixed4,quantise mixed2")
    widths = {one.member.name: [layer.width for layer in one.blueprint.layers[1:]] for one in chosen if one.lineage}
    assert [*widths.values()] == [["int8", "int4", "int4"], ["int8", "int2", "int2"]]


@pytest.mark.parametrize(("step", "fitted"), [("quantise mixed4", 8), ("prune 0.5", 0)])
def test_whole_weights_stay_while_biases_are_fitted_to_them(step, fitted, tmp_path, monkeypatch):
    imitate, moves = imitation.imitate, []

    def watched(family, *rest):
        (rows,) = family.stacks
        before = rows.theta.clone()
        losses = imitate(family, *rest)
        weights = finetuning.beside_weights(rows) == 0
        moved = (rows.theta != before)[0]
        moves.append((bool(moved[weights].any()), bool(moved[~weights].any())))
        return losses

    here, family, done = family_runs.imitated(tmp_path, TEACHER, ENV, ["mlp:16"], [*SHORT, f"compress={step}"])
    monkeypatch.setattr(imitation, "imitate", watched)
    with machine.steady(1):
        chosen, _ = choosing.choose(here, family)
        compressing.compress(here, family, chosen, done)
    assert moves == [(True, True)] * (16 - fitted) + [(False, True)] * fitted


def test_the_best_weights_of_each_half_stay(tmp_path, monkeypatch):
    """The last part of each half spoils the weights: what leaves is what came closest to the teacher."""
    imitate, apart = imitation.imitate, []
    here, family, done = family_runs.imitated(tmp_path, TEACHER, ENV, ["mlp:16"], [*SHORT, "compress=quantise int4"])
    table, _ = compressing._table(here, family, done)
    after = families.build(parse(["mlp:16:int4@2"]), family.ports, 0)
    after.normalisers = family.normalisers
    measure = objective.measure(learn.terms_for(here), table.head)

    def distance():
        which = torch.arange(table.rows)
        return imitation.disagreements(after.stacks[0], table, measure, which).mean(1)

    def spoiling(*given):
        losses = imitate(*given)
        if len(apart) in (7, 15):
            after.stacks[0].theta *= -1.0
        apart.append(distance())
        return losses

    monkeypatch.setattr(imitation, "imitate", spoiling)
    finetuning.tuned(here, after, table, 100, whole=True)
    assert len(apart) == 16
    assert torch.equal(distance(), torch.stack(apart).amin(0))
    assert (distance() < apart[7]).all()
    assert (distance() < apart[15]).all()


def test_weights_are_those_of_every_kind_of_layer():
    view = View(history=4)
    for text, parts in (
        ("gru:4:int4", ["stem0", "memory", "head0"]),
        ("conv1d:3k2:5:int4", ["stem0.conv0", "stem0", "head0"]),
    ):
        (rows,) = families.build(parse([text]), {ENV: replace(PORT, view=view, inputs=16)}, 0).stacks
        kept, at, weights = finetuning.beside_weights(rows), 0, []
        assert len(kept) == rows.theta.shape[1]
        for name, shape in rows.stack.shapes.items():
            part, at = kept[at : at + int(np.prod(shape))], at + int(np.prod(shape))
            weights += [name] if not part.any() else []
            assert part.all() or not part.any()
        assert weights == [f"{part}.weight" for part in parts]


def test_memories_are_trained_whole_to_the_end(tmp_path):
    options = ["compression.gradient_steps=2", "compress=quantise int4"]
    here, family, done = family_runs.imitated(tmp_path, TEACHER, ENV, ["mlp:16"], [*SHORT, *options])
    table, _ = compressing._table(here, family, done)
    after = families.build(parse(["mlp:16:int4", "gru:4:int4"]), family.ports, 0)
    losses = finetuning.tuned(here, after, table, 100, whole=True)
    assert [rows.held is None for rows in after.stacks] == [False, True]
    assert [rows.steps for rows in after.stacks] == [2, 2]
    assert set(losses) == {"mlp-16-int4-s0", "gru-4-int4-s0"}


def test_members_are_judged_in_passes_that_fit_into_memory():
    """4,096 pictures are never floats at once."""
    table = Table(ENV, torch.zeros(9000, 4), torch.zeros(9000, dtype=torch.bool), {}, {}, PORT.head)
    (rows,) = families.build(parse(["mlp:4@2"]), {ENV: PORT}, 0).stacks
    (whole,) = finetuning.passes(rows, table, 4)
    assert len(whole) == 4096
    assert (whole[0], whole[-1]) == (0, 8999)
    pictures = finetuning.passes(rows, table, 84 * 84 * 4)
    assert torch.equal(torch.cat(pictures), whole)
    assert max(map(len, pictures)) * 84 * 84 * 4 * 2 <= finetuning.ROOM, "of both members"


def test_a_trained_member_acts_as_it_was_trained(tmp_path):
    """On states of real play, raw as the environment gives them: the whole numbers of training are those of the blueprint."""
    here, family, done = family_runs.imitated(tmp_path, TEACHER, ENV, ["mlp:16:int8", "mlp:16:tanh:int4"], SHORT)
    table, _ = compressing._table(here, family, done)
    data = open_dataset(tmp_path / "dataset", ENV, done.round)
    raw, first = np.asarray(data.observations()), np.ones(table.rows, bool)
    for rows in family.stacks:
        said = rows.stack.forward(rows.theta, ENV, table.inputs[None], None)[0, 0]
        params = NumpyPolicy(family.blueprint(rows.members[0].name, ENV))(raw, {}, first).params
        assert (params.argmax(1) == said.argmax(1).numpy()).mean() >= 0.995
        build, scale = choosing._trained(family, rows.members[0].name, ENV)
        noise = np.random.default_rng(0).standard_normal(len(scale)).astype(np.float32)
        polished = build(family.row(rows.members[0].name) + 0.5 * scale * noise)
        blueprints.check(polished.blueprint)  # evolution moves what lies below the whole numbers
        assert (polished(raw, {}, first).params != params).any()


@pytest.mark.parametrize("students", [["mlp:12:int4@2"], ["mlp:12@2"]])
def test_a_killed_run_continues_bit_for_bit(students, tmp_path, monkeypatch):
    """Killed among the rounds of quantised members, and between two steps of compression."""
    steps = "quantise ternary" if "int4" in students[0] else "prune 0.5,quantise int2"
    _, whole, spent, _ = compressed(tmp_path / "whole", students, steps)
    with monkeypatch.context() as patched:
        if "int4" in students[0]:
            family_runs.killed_after_round(0, patched)
        else:
            inherited = compressing._inherited

            def killed(line, after, *rest):
                if after.architecture.precision:
                    raise KeyboardInterrupt
                return inherited(line, after, *rest)

            patched.setattr(compressing, "_inherited", killed)
        with pytest.raises(KeyboardInterrupt):
            compressed(tmp_path / "parts", students, steps)
    _, parts, again, _ = compressed(tmp_path / "parts", students, steps)
    first, second = numbers(whole), numbers(parts)
    assert list(first) == list(second)
    assert all(np.array_equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True))
    assert (spent.gradient_steps, spent.race_steps) == (again.gradient_steps, again.race_steps)


def test_neurons_that_matter_stay(tmp_path):
    """Half of the neurons say nothing: cut in half, the student is the same function before it is trained further."""
    here, family, done = family_runs.imitated(tmp_path, TEACHER, ENV, ["mlp:16"], SHORT)
    table, _ = compressing._table(here, family, done)
    stack = family.stacks[0].stack
    arrays = stack.unpack(family.row("mlp-16-s0"))
    arrays["head0.weight"][::2] = 0.0
    row = stack.pack(arrays)
    family.put("mlp-16-s0", row)
    one = choosing.Chosen(parse(["mlp:16"])[0], family.blueprint("mlp-16-s0", ENV), 0.0)
    after = families.build(parse(["mlp:8"]), family.ports, 0).stacks[0].stack
    cut = compressing._inherited(compressing._Line(one, stack, row), after, ENV, family, table)
    its, mine = (
        s.forward(torch.from_numpy(r)[None], ENV, table.inputs[None], None) for s, r in ((stack, row), (after, cut))
    )
    assert torch.allclose(its, mine, atol=1e-2 * float(its.std())), "up to the ridge of the refit"


def test_only_named_members_are_compressed(tmp_path):
    _, chosen, _, _ = compressed(tmp_path, ["mlp:12", "mlp:6"], "quantise int8", ["compression.members=mlp-6-s0"])
    assert {one.member.name for one in chosen} == {"mlp-12-s0", "mlp-6-s0", "mlp-6-s0-int8"}


def test_named_members_that_were_not_chosen_are_told_in_the_recipes_order(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(family_runs, "silent", lambda stage, text: told.append(text))
    names = [f"linear-s{n}" for n in (3, 0, 5, 1, 4, 2)]
    compressed(
        tmp_path, ["linear@6"], "quantise int8", [f"compression.members={','.join(names)}", "imitate.gradient_steps=1"]
    )
    left = [text.split()[0] for text in told if text.endswith("was not chosen, so it is not compressed")]
    assert len(left) == 5
    assert left == [name for name in names if name in left]


def test_a_step_whose_checkpoint_is_damaged_is_billed_twice(tmp_path):
    _, whole, spent, before = compressed(tmp_path, ["linear"], "quantise int8")
    (tmp_path / "checkpoints" / "compress-0-000000.safetensors").write_bytes(b"damaged")
    for _ in range(2):  # the second time all is whole again, and the bill stays
        _, again, after, _ = compressed(tmp_path, ["linear"], "quantise int8")
        assert after.race_steps - before.race_steps == 2 * (spent.race_steps - before.race_steps) > 0
        assert after.gradient_steps - before.gradient_steps == 2 * 16
        first, second = numbers(whole), numbers(again)
        assert all(np.array_equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True))


def test_every_step_is_proved_whatever_became_of_the_members_before(tmp_path, monkeypatch):
    """Eight episodes prove nothing: the plain members stop at their first, each compressed one has its own verdict."""
    told = []
    monkeypatch.setattr(family_runs, "silent", lambda stage, text: told.append(text))
    here, chosen, _, _ = compressed(
        tmp_path, ["mlp:8", "linear"], "prune 0.5,quantise int8", ["prove.max_episodes=8", "prove.bound_episodes=10"]
    )
    names = ["mlp-8-s0", "mlp-8-s0-prune0.5", "mlp-8-s0-prune0.5-int8"]
    assert [[one.member.name for one in line] for line in proving.sequences(chosen)] == [
        ["mlp-8-s0", "linear-s0"],
        *([n] for n in names[1:]),
    ]
    found = proving.prove(here, chosen, {one.member.name: [] for one in chosen})
    assert list(found.proofs) == names
    assert [found.proofs[name].alpha for name in names] == [0.05 / 3] * 3, "the family's alpha, shared"
    assert not any(proof.verdict == "proved" for proof in found.proofs.values())
    assert set(found.latency) == {*names, "linear-s0"}
    assert any("3 sequences share alpha 0.05 and begin with 0.0167 each" in text for text in told)
    again = proving.prove(here, chosen, {one.member.name: [] for one in chosen})
    assert again.proofs == found.proofs, "read again"


def test_a_run_that_was_begun_with_alpha_for_each_goes_on_so_and_says_it(tmp_path, monkeypatch):
    """Its first proof was played before levels were shared: the others are not put to another level in silence."""
    told = []
    monkeypatch.setattr(family_runs, "silent", lambda stage, text: told.append(text))
    here, chosen, _, _ = compressed(
        tmp_path, ["linear"], "quantise int8", ["prove.max_episodes=8", "prove.bound_episodes=10"]
    )
    artifacts = {one.member.name: [] for one in chosen}
    proving.prove(here, chosen, artifacts)
    record = here.run.folder / "records" / "bounds.json"
    fixed = storage.read_json(record)
    assert fixed.pop(proving.SHARED) is True
    storage.write_json(record, fixed)
    for path in (here.run.folder / "records").glob("prove-*.json"):
        path.unlink()
    shutil.rmtree(here.run.folder / "proofs")
    old = proving.prove(here, chosen, artifacts)
    assert {proof.alpha for proof in old.proofs.values()} == {0.05}
    assert old.family == 0.1
    assert any("as this run was begun" in text and "at most 2 x 0.05 = 0.1" in text for text in told)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("text", "words"), [
    ("prun 0.5", "did you mean 'prune'"), ("prune 0", "no share"), ("prune 1", "no share"), ("prune -0.5", "no share"), ("prune nan", "no share"),
    ("quantise int3", "did you mean 'int8'"), ("quantise", "unknown width ''"), ("low_rank 0", "no rank"), ("low_rank 1.5", "no rank"), ("", "unknown step ''"),
])  # fmt: skip
def test_what_is_no_step(text, words):
    with pytest.raises(InputError, match=words):
        steps_of([text])


@pytest.mark.parametrize(("options", "students", "words"), [
    (["compress=prune 2"], ["mlp:8"], "no share of the neurons above 0 and below 1"),
    (["compress=prune 0.5,quantise int8"], ["gru:8"], "no student can take prune 0.5, quantise int8. gru-8-s0: prune 0.5: it is no dense network: gru"),
    (["compress=low_rank 8"], ["mlp:8"], "no dense layer becomes smaller"),
    (["compress=quantise int8", "compression.members=mlp-9-s0"], ["mlp:8"], "no member 'mlp-9-s0'; did you mean 'mlp-8-s0'"),
    (["compress=prune 0.5", "compression.members=linear-s0"], ["mlp:8", "linear"], "linear-s0 cannot take prune 0.5"),
    (["compression.members=mlp-8-s0"], ["mlp:8"], "compress has no step"),
])  # fmt: skip
def test_it_is_refused_at_once(options, students, words, refused):
    refused(words, options, students)


@pytest.mark.slow
def test_compressed_members_are_exported_and_proved(tmp_path):
    import limbeck

    result = limbeck.distill(TEACHER, ENV, ["mlp:16x16"], tmp_path / "run", retain=0.9,
                             options=["compress=prune 0.5,low_rank 2,quantise int8", "imitate.rounds=6", "race.rounds=3"])  # fmt: skip
    found = {member.name: member for member in result.members}
    name = "mlp-16x16-s0-prune0.5-r2-int8"
    assert found[name].lineage == ("mlp-16x16-s0", "prune 0.5", "low_rank 2", "quantise int8")
    assert all(member.proof.verdict == "proved" for member in found.values())
    assert (tmp_path / "run" / "artifacts" / name / "c").is_dir()
