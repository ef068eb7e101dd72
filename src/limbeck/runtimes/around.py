"""A policy around another one: the same spaces and memory, another answer."""

from __future__ import annotations

from limbeck.contracts import Head, Policy, Spec, State


class Around:
    """What every wrapper of a policy passes on; a concrete one answers."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    @property
    def head(self) -> Head:
        return self.inner.head

    def initial_state(self, batch: int) -> State:
        return self.inner.initial_state(batch)
