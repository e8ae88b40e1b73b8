"""Which weights the KV of this engine comes from, and whether anybody can tell.

Pure: no I/O, no threads, no vLLM. Owned by the scheduler's thread.

An epoch is a set of weights, known by the digest of what lies in the memory of all ranks. Every key
is masked with its epoch, so chunks of other weights have other names. The weights that the
namespace names need no mask. While the weights are in doubt, kvshelf makes no lookup and no store:

    on      --- doubt (an RPC to the workers, wake-up, reset_cache) ---> doubt
    doubt   --- settle: same weights ----------------------------------> what it was before
    doubt   --- settle: other weights, vLLM's own cache is empty ------> on, in another epoch
    doubt   --- settle: other weights ---------------------------------> stale
    stale   --- a local reset that succeeded --------------------------> on

``stale``: vLLM's own prefix cache, or a request that runs, may hold KV of the weights before.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from kvshelf.disk.keys import make_mask

# More requests than an engine has at once; those that never end are forgotten.
REQUESTS_MAX = 65_536


class Epochs:
    """
    Args:
        names_weights: whether the namespace names the weights that the engine starts with. If not
            (dummy weights, a loader that reads no file), it starts in doubt.
        has_other_caches: whether caches beside vLLM's own prefix cache (a host-memory tier, another
            connector) may hold KV: then only a reset that includes connectors makes sure.

    Attributes:
        mask: for the keys of this epoch; see ``kvshelf.disk.keys.masked``.
        generation: changes with every epoch and every reset that ended a stale time.
    """

    def __init__(self, *, names_weights: bool = True, has_other_caches: bool = False) -> None:
        self.mask = b""
        self.generation = 0
        self._names_weights = names_weights
        self.has_other_caches = has_other_caches
        self._first: str | None = None  # digest of the weights that the namespace names
        self._digest: str | None = None
        self._doubt = "" if names_weights else "the weights come from no file"
        self._is_stale = False
        self._is_empty = True  # nothing was computed or loaded since the last reset, or the start
        self._computed_in_doubt = False  # since the last thing that may have changed weights
        self._is_mixed = False  # something was, before another such thing
        self._born: OrderedDict[str, int] = OrderedDict()  # request -> generation
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_on(self) -> bool:
        return not self._doubt and not self._is_stale

    @property
    def is_in_doubt(self) -> bool:
        return bool(self._doubt)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was computed since vLLM's caches were emptied."""
        return self._is_empty

    @property
    def has_computed_in_doubt(self) -> bool:
        """Whether another doubt, before this one is settled, makes what was computed worthless."""
        return self._computed_in_doubt

    @property
    def reason(self) -> str:
        """Why there are no lookups and stores; "" while there are."""
        if self._doubt:
            return self._doubt
        return "weights changed and vLLM's prefix cache was not reset since" * self._is_stale

    @property
    def name(self) -> str:
        """The epoch, as log lines call it."""
        return "first" if not self.mask else str(self._digest)[:12]

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it, on the scheduler's thread, when what was known of keys holds no longer."""
        self._listeners.append(listener)

    def begin(self, digests: Sequence[str] | None) -> None:
        """The weights of all ranks, in order, before the first request; None: they cannot be told.

        Then a namespace that names them is right until the first doubt, and one that does not names
        nothing: kvshelf stays off.
        """
        if digests is None or self._digest is not None:
            return
        if self._names_weights:
            self._first = self._digest = _joined(digests)
        else:
            self.settle(digests)

    def doubt(self, reason: str) -> None:
        """Something may have changed the weights, or is about to."""
        # Weights may go and come back: what was computed in between comes from the others.
        self._is_mixed |= self._computed_in_doubt
        self._doubt = reason

    def settle(self, digests: Sequence[str] | None, alive: Iterable[str] = ()) -> None:
        """The weights of all ranks now, in order. None: they cannot be told, so this is an epoch
        that nobody else has, and that does not come again.

        Args:
            alive: requests that have computed nothing yet.
        """
        self._doubt = ""
        digest = secrets.token_hex(32) if digests is None else _joined(digests)
        is_mixed = self._is_mixed
        self._is_mixed = self._computed_in_doubt = False
        if digest == self._digest and not is_mixed:
            return
        self._digest = digest
        self.mask = b"" if digest == self._first else make_mask(f"weights {digest}")
        self._is_stale = not self._is_empty
        self._turn()
        if self._is_empty:
            self._begin_anew(alive)

    def computes(self) -> None:
        """vLLM gave blocks to a request, or a step computes."""
        self._is_empty = False
        self._computed_in_doubt = bool(self._doubt)

    def local_reset(self, *, with_connectors: bool, alive: Iterable[str] = ()) -> None:
        """vLLM's own prefix cache was emptied.

        Args:
            with_connectors: whether connectors were reset too.
            alive: requests that begin anew; all others keep the KV that they have.
        """
        if self.has_other_caches and not with_connectors:
            return
        self._is_empty = True
        if self._is_stale or self._is_mixed or self._computed_in_doubt:
            self._is_stale = self._is_mixed = self._computed_in_doubt = False
            self._turn()
        self._begin_anew(alive)

    def started(self, req_id: str) -> None:
        """A request is new. May be told more than once."""
        if req_id in self._born:
            return
        self._born[req_id] = self.generation
        if len(self._born) > REQUESTS_MAX:
            self._born.popitem(last=False)

    def ended(self, req_id: str) -> None:
        self._born.pop(req_id, None)

    def may_store(self, req_id: str) -> bool:
        """Whether all KV of this request comes from the weights of this epoch."""
        return self.is_on and self._born.get(req_id, 0) == self.generation

    def _begin_anew(self, alive: Iterable[str]) -> None:
        for req_id in alive:
            self._born[req_id] = self.generation

    def _turn(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()


def _joined(digests: Sequence[str]) -> str:
    return " ".join(digests)
