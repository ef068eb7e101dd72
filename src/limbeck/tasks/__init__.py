"""What a policy is judged on: a Gymnasium environment, a ready-made vector environment, or a labelled data set.

Every episode starts by an explicit reset with its own seed. The lanes below hide Gymnasium's three autoreset modes:
a row is stored only if the step taken from it was `alive`, so reset rows never reach a data set.
"""

from limbeck.tasks.datasets import DatasetLanes, DatasetTask, digits, labelled
from limbeck.tasks.environments import EnvLanes, EnvTask
from limbeck.tasks.hanging import Watchdog, own_limit, watchdog
from limbeck.tasks.observations import copy_observation, empty_observation, finite_rows, put_row, take_rows
from limbeck.tasks.resolving import ALIASES, PLUGINS, resolve
from limbeck.tasks.vectors import VectorLanes, VectorTask

__all__ = [
    "ALIASES",
    "PLUGINS",
    "DatasetLanes",
    "DatasetTask",
    "EnvLanes",
    "EnvTask",
    "VectorLanes",
    "VectorTask",
    "Watchdog",
    "copy_observation",
    "digits",
    "empty_observation",
    "finite_rows",
    "labelled",
    "own_limit",
    "put_row",
    "resolve",
    "take_rows",
    "watchdog",
]
