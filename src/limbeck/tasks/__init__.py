"""What a policy is judged on: an environment of any library, a ready-made vector environment, or a labelled data set.

Every episode starts by an explicit reset with its own seed. The lanes below hide Gymnasium's three autoreset modes:
a row is stored only if the step taken from it was `alive`, so reset rows never reach a data set.
"""

from limbeck.tasks.border import MASK, Border, allowed_actions, holds_mask
from limbeck.tasks.datasets import DIGITS, DatasetLanes, DatasetTask, digits, labelled
from limbeck.tasks.environments import EnvLanes, EnvTask
from limbeck.tasks.hanging import Watchdog, own_limit, watchdog
from limbeck.tasks.mnist_files import mnist
from limbeck.tasks.observations import copy_observation, empty_observation, finite_rows, put_row, take_rows
from limbeck.tasks.plugins import PLUGINS
from limbeck.tasks.recorded import RecordedLanes, RecordedTask, from_recordings
from limbeck.tasks.resolving import ALIASES, resolve
from limbeck.tasks.vectors import VectorLanes, VectorTask
from limbeck.tasks.wrappers import WRAPPERS

__all__ = [
    "ALIASES",
    "DIGITS",
    "MASK",
    "PLUGINS",
    "WRAPPERS",
    "Border",
    "DatasetLanes",
    "DatasetTask",
    "EnvLanes",
    "EnvTask",
    "RecordedLanes",
    "RecordedTask",
    "VectorLanes",
    "VectorTask",
    "Watchdog",
    "allowed_actions",
    "copy_observation",
    "digits",
    "empty_observation",
    "finite_rows",
    "from_recordings",
    "holds_mask",
    "labelled",
    "mnist",
    "own_limit",
    "put_row",
    "resolve",
    "take_rows",
    "watchdog",
]
