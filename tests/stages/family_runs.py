"""A run up to its trained family, as the tests of stages need it."""

from limbeck import identity, machine, pipeline, runs
from limbeck.stages import learn, scene

CHEAP = (
    "verify.episodes=2", "verify.random_episodes=2", "collect.steps=400", "imitate.rounds=4", "imitate.gradient_steps=40",
    "imitate.batch=128", "race.episodes=1", "race.rounds=3", "race.final_episodes=1", "verify.accept=true",
)  # fmt: skip


def silent(stage, text):
    """A run that tells nothing."""


def imitated(folder, teacher, env, students, options=()):
    """The scene, the trained family and its progress."""
    values = {"teacher": str(teacher), "env": env, "students": list(students)}
    recipe, task, loaded = pipeline._load(values, [*CHEAP, *options], None, None, silent)
    with machine.steady(1):
        run = runs.open_run(folder, recipe, silent, identity.of_task(task))
        here = scene.verify(run, task, loaded)
        family, done = learn.imitate_rounds(here)
    return here, family, done


def killed_after_round(number, monkeypatch):
    """The process ends as soon as that round's checkpoint is written."""
    save = runs.save_checkpoint

    def saved(folder, stage, counter, *rest):
        save(folder, stage, counter, *rest)
        if stage == "round" and counter == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_checkpoint", saved)
