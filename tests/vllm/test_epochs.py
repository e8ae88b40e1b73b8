"""Epochs against a model that knows which weights every byte of KV came from."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvshelf.disk.keys import make_mask
from kvshelf.vllm.scheduler.epochs import Epochs

WEIGHTS = ["w1", "w2", "w3"]


def test_the_first_weights_need_no_mask_and_others_have_one_each() -> None:
    epochs = Epochs()
    epochs.begin(["w1", "w1"])
    assert epochs.mask == b""
    seen = {b""}
    for weights in ("w2", "w3", "w2", "w1"):
        epochs.doubt("an update")
        assert not epochs.is_on
        epochs.settle([weights, weights])
        assert epochs.is_on  # nothing was computed
        seen.add(epochs.mask)
    assert epochs.mask == b""
    assert len(seen) == 3


def test_two_engines_at_the_same_weights_have_the_same_mask() -> None:
    one, other = Epochs(), Epochs()
    one.begin(["w1"])
    other.begin(["w1"])
    one.settle(["w2"])
    one.settle(["w3"])
    other.settle(["w3"])
    assert one.mask == other.mask != b""
    turned = Epochs()
    turned.begin(["a", "b"])
    turned.settle(["b", "a"])  # ranks are not interchangeable
    assert turned.mask != b""


def test_weights_that_cannot_be_read_are_an_epoch_of_their_own() -> None:
    epochs, other = Epochs(), Epochs()
    epochs.begin(None)
    assert epochs.is_on and epochs.mask == b""  # the namespace names them
    masks = set()
    for each in (epochs, epochs, other):
        each.doubt("a reset")
        each.settle(None)
        masks.add(each.mask)
    assert len(masks) == 3


def test_an_engine_whose_namespace_names_no_weights_waits_for_them() -> None:
    epochs = Epochs(names_weights=False)
    assert not epochs.is_on
    epochs.begin(None)
    assert not epochs.is_on and "no file" in epochs.reason
    epochs.begin(["w1"])
    assert epochs.is_on
    assert epochs.mask == make_mask("weights w1")


def test_what_ran_before_a_change_stores_nothing_until_it_ends() -> None:
    epochs = Epochs()
    epochs.begin(["w1"])
    epochs.started("old")
    epochs.computes()
    assert epochs.may_store("old")
    epochs.doubt("an update")
    epochs.settle(["w2"])
    assert not epochs.is_on and "reset" in epochs.reason
    epochs.started("between")
    epochs.local_reset(with_connectors=False, alive=["preempted"])
    assert epochs.is_on and epochs.reason == ""
    epochs.started("new")
    assert [epochs.may_store(r) for r in ("old", "between", "preempted", "new")] == [
        False,
        False,
        True,
        True,
    ]
    assert not epochs.may_store("never seen")


def test_an_empty_cache_needs_no_reset_after_the_change() -> None:
    """As trainers do: pause with clear_cache, update, resume."""
    epochs = Epochs()
    epochs.begin(["w1"])
    epochs.started("queued")
    epochs.computes()
    epochs.local_reset(with_connectors=True, alive=["queued"])
    epochs.doubt("an update")
    epochs.settle(["w2"], alive=["queued"])
    assert epochs.is_on
    assert epochs.may_store("queued")


def test_other_caches_are_only_empty_after_a_reset_of_connectors() -> None:
    epochs = Epochs(has_other_caches=True)
    epochs.begin(["w1"])
    epochs.computes()
    epochs.settle(["w2"])
    epochs.local_reset(with_connectors=False)
    assert not epochs.is_on
    epochs.local_reset(with_connectors=True)
    assert epochs.is_on


def test_no_change_keeps_all() -> None:
    epochs = Epochs()
    turns: list[int] = []
    epochs.listen(lambda: turns.append(1))
    epochs.begin(["w1"])
    epochs.started("a")
    epochs.computes()
    epochs.doubt("an RPC")
    epochs.settle(["w1"])
    assert epochs.is_on and epochs.may_store("a") and not turns


def test_weights_that_went_and_came_back_taint_what_was_computed_between() -> None:
    epochs = Epochs()
    epochs.begin(["w1"])
    epochs.doubt("to w2")
    epochs.started("a")
    epochs.computes()
    epochs.doubt("back to w1")
    epochs.settle(["w1"])
    assert not epochs.is_on
    epochs.local_reset(with_connectors=False)
    assert epochs.is_on and epochs.mask == b""
    assert not epochs.may_store("a")


class Engine(RuleBasedStateMachine):
    """A vLLM engine in outline: which weights its memory has, and which made each request's KV and
    the prefix cache. Nothing is ever stored or looked up under a mask of other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = Epochs()
        self.weights = "w1"
        self.epochs.begin(["w1"])
        self.cache: set[str] = set()  # weights whose KV the prefix cache has
        self.running: dict[str, set[str]] = {}  # request -> weights of its KV
        self.ended: dict[str, set[str]] = {}  # still to be stored by vLLM
        self.next = 0

    @rule(weights=st.sampled_from(WEIGHTS))
    def update(self, weights: str) -> None:
        self.epochs.doubt("an RPC")
        self.weights = weights

    @rule()
    def settle(self) -> None:
        self.epochs.settle([self.weights], alive=[r for r, kv in self.running.items() if not kv])

    @rule()
    def request(self) -> None:
        self.running[f"r{self.next}"] = set()
        self.epochs.started(f"r{self.next}")
        self.next += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """A request computes; if it is new it uses what the prefix cache has."""
        name = data.draw(st.sampled_from(sorted(self.running)))
        kv = self.running[name]
        self.epochs.computes()
        if not kv:
            kv |= self.cache
        kv.add(self.weights)
        self.cache |= kv

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.ended[name] = self.running.pop(name)

    @rule(preempts=st.booleans())
    def reset(self, preempts: bool) -> None:
        if preempts:
            for kv in self.running.values():
                kv.clear()
        if any(self.running.values()):
            return  # it fails while blocks are in use
        self.cache.clear()
        self.epochs.local_reset(with_connectors=False, alive=list(self.running))

    @invariant()
    def nothing_of_other_weights_is_stored(self) -> None:
        named = "w1" if not self.epochs.mask else None
        for weights in WEIGHTS:
            if self.epochs.mask == make_mask(f"weights {weights}"):
                named = weights
        for name, kv in {**self.running, **self.ended}.items():
            if self.epochs.may_store(name):
                assert kv <= {named}, (name, kv, named)

    @invariant()
    def lookups_are_those_of_the_weights_in_memory(self) -> None:
        if self.epochs.is_on:
            wanted = b"" if self.weights == "w1" else make_mask(f"weights {self.weights}")
            assert self.epochs.mask == wanted


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
