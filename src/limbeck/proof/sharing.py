"""How the claims of a family share one error probability alpha: several sequences of members, one after the other.

The plain members are one sequence, tested largest to smallest until the first that is not proved; every compressed
member is a sequence of its own, tested whatever became of the others. With n sequences each begins with alpha / n, and
a member that is proved passes its level on to the next one in order (the fallback procedure, Wiens 2003; Wiens &
Dmitrienko 2005): the level of member i, whose share w_i is 1 where it begins a sequence, else 0, is

    l_i = w_i alpha / n + (l_(i-1) if member i - 1 was proved, else 0),        not tested where l_i = 0.

Some claim of the family is false with probability at most alpha, however the members depend on each other. Let i be the
first one proved whose claim is false. All that passed a level on to it are proved before it and so true, hence l_i is at
most L_i = alpha / n times the shares since the last false claim before i, a constant. Proved means wealth 1 / l_i, so
P(i is the first) <= P(sup W_i >= 1 / L_i) <= L_i (Ville), and the L_i of all false claims sum to at most alpha.

One sequence alone (a family without compression) has l_i = alpha throughout: the fixed-sequence test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


def sequences(lineages: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Members in the order tested: the plain ones (no lineage) as they come, then each compressed one, by lineage.

    >>> sequences({"a": (), "a-prune0.5": ("a", "prune 0.5"), "b": ()})
    [['a', 'b'], ['a-prune0.5']]
    """
    plain = [name for name, lineage in lineages.items() if not lineage]
    made = [name for name, lineage in lineages.items() if lineage]
    return [plain, *([name] for name in sorted(made, key=lambda name: (lineages[name][0], len(lineages[name]))))]


@dataclass(frozen=True)
class Sharing:
    """The levels of a family; `shared` False: as runs were begun that gave each sequence alpha for itself."""

    lines: Sequence[Sequence[str]]
    alpha: float
    shared: bool = True

    def level(self, member: str, proved: Callable[[str], bool]) -> float:
        """The error probability at which a member is tested, given who before it is proved; 0: it is not tested.

        >>> three = Sharing([["a", "b"], ["c"], ["d"]], 0.75)
        >>> [three.level(name, lambda before: before in "ac") for name in "abcd"]
        [0.25, 0.25, 0.25, 0.5]
        """
        parts = 0  # of alpha / n
        for line in self.lines:
            for place, name in enumerate(line):
                if place == 0:
                    parts = parts + 1 if self.shared else len(self.lines)
                if name == member:
                    return self.alpha if parts == len(self.lines) else self.alpha * parts / len(self.lines)
                parts = parts if parts and proved(name) else 0
        raise KeyError(member)

    @property
    def family(self) -> float:
        """Bound of the probability that any claim is false."""
        return self.alpha if self.shared else min(self.alpha * len(self.lines), 1.0)

    def words(self) -> str:
        """What is told before the first proof of a family with compressed members."""
        made, each = len(self.lines) - 1, self.alpha / len(self.lines)
        who = "the compressed member is" if made == 1 else f"the {made} compressed members are each"
        apart = f"{who} tested whatever became of the members before"
        if self.shared:
            return (
                f"{apart}: {len(self.lines)} sequences share alpha {self.alpha:g} and begin with {each:.3g} each, what is proved passes "
                f"its level on; one or more claims of the family are false with probability at most {self.alpha:g}"
            )
        return (
            f"{apart}, as this run was begun: a claim is false with probability at most {self.alpha:g}, "
            f"one or more of the family with at most {len(self.lines)} x {self.alpha:g} = {self.family:g}"
        )
