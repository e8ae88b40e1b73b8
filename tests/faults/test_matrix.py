"""Every cell of the fault matrix on real files, real system calls and an unchanged engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

pytest.importorskip("vllm")  # counters and log lines are its worker's and its manager's

from kvshelf.engine import FileStatus
from tests.harness.faulty_calls import why_no_calls

from . import matrix
from .matrix import Cell, Outcome, classify, every_cell, every_combination
from .pool import preloaded_pool

REASON = why_no_calls()
needs_calls = pytest.mark.skipif(REASON is not None, reason=REASON or "")
pytestmark = pytest.mark.vllm

PROCESSES = 4  # most of a hang's time is waiting
SECONDS = 840.0  # a machine with other work to do needs minutes to import vLLM
CELLS = list(every_cell())


def name_of(cell: Cell) -> str:
    return f"{cell.job}: {cell.operation} {cell.target}"


def moves(cells: list[tuple[Cell, Outcome]]) -> bool:
    cell = cells[0][0]
    transfers = cell.operation in ("read", "write", "allocate")
    return cell.job in ("load", *matrix.STORES) and (transfers or cell.condition == "damaged")


GROUPS = {name: list(cells) for name, cells in itertools.groupby(CELLS, lambda c: name_of(c[0]))}


def test_every_combination_is_a_cell_or_excluded_for_a_reason() -> None:
    kinds = {"cell": 0, "excluded": 0}
    for cell in every_combination():
        found = classify(cell)
        assert isinstance(found, Outcome) or (isinstance(found, str) and found), cell
        kinds["cell" if isinstance(found, Outcome) else "excluded"] += 1
    assert kinds["cell"] == len(CELLS) == len({cell for cell, _ in CELLS}) > 1500
    dimensions = (
        *(matrix.JOBS, matrix.OPERATIONS, matrix.TARGETS, matrix.FAULTS),
        *(matrix.CHUNKS, matrix.TIMES, matrix.DURABILITIES),
    )
    total = 1
    for values in dimensions:
        total *= len(values)
    assert sum(kinds.values()) == total
    # Nothing that the dimensions name is excluded altogether.
    for field, values in zip(Cell.__slots__, dimensions, strict=True):
        assert {getattr(cell, field) for cell, _ in CELLS} == set(values)


def test_outcomes_are_statuses_of_the_engine() -> None:
    names = {status.name for status in FileStatus}
    for cell, outcome in CELLS:
        assert outcome.status in names | {"NOT_RENEWED"}, cell
        assert outcome.later in names, cell
        assert (outcome.error != 0) == (outcome.status == "IO_ERROR"), cell


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with preloaded_pool(PROCESSES) as made:
        yield made


@pytest.fixture(scope="module")
def running(
    pool: ProcessPoolExecutor, request: pytest.FixtureRequest
) -> dict[str, list[tuple[Cell, Future[int]]]]:
    """All cells of this run's tests, begun at once."""
    from .cells import run_cell

    chosen = {
        item.callspec.params["group"]
        for item in request.session.items
        if hasattr(item, "callspec") and "group" in item.callspec.params
    }
    return {
        group: [(cell, pool.submit(run_cell, cell, outcome)) for cell, outcome in cells]
        for group, cells in GROUPS.items()
        if group in chosen
    }


@needs_calls
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_cells(group: str, running: dict[str, list[tuple[Cell, Future[int]]]]) -> None:
    failures = []
    for _, future in running[group]:
        error = future.exception(SECONDS)
        if error is not None:
            failures.append(f"{type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


@needs_calls
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", sorted(name for name, cells in GROUPS.items() if moves(cells)))
def test_cells_of_packed_chunks(group: str, pool: ProcessPoolExecutor) -> None:
    """What moves the bytes of a file: nothing else knows whether they are packed."""
    from .cells import run_cell

    cells = [(cell, outcome) for cell, outcome in GROUPS[group] if cell.durability == "none"]
    futures = [pool.submit(run_cell, cell, outcome, True) for cell, outcome in cells]
    errors = [future.exception(SECONDS) for future in futures]
    failures = [f"{type(error).__name__}: {error}" for error in errors if error is not None]
    assert futures and not failures, "\n".join(failures)


@needs_calls
@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", matrix.JOBS)
@pytest.mark.parametrize("durability", matrix.DURABILITIES)
def test_the_calls_that_a_job_makes_are_all_in_the_matrix(
    job: str, durability: str, pool: ProcessPoolExecutor
) -> None:
    """By operation: a call that is made and stands in no cell would have no fault."""
    from .cells import operations_seen

    seen = pool.submit(operations_seen, job, durability).result(SECONDS)
    calls = set(matrix.CALLS[job])
    if job in matrix.STORES:
        calls |= {("fsync", target) for target in matrix.SYNCS.get(durability, ())}
    plain = {
        operation for operation, target in calls if not matrix.CALLS[job].get((operation, target))
    }
    assert seen == plain
