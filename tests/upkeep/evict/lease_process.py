"""A process that wants a shelf's lease, and says every change.

    python lease_process.py ROOT LEASE_SECONDS [--other-host] [--release]

Lines on standard output: "+" when it has the lease, "-" when it has not; the time on Linux's
CLOCK_MONOTONIC, which all processes of a machine share, behind it. Ends when its input ends.
"""

from __future__ import annotations

import select
import sys
import time

from kvshelf.upkeep.evict.lease import open_lease


def main() -> None:
    root, lease_seconds = sys.argv[1], float(sys.argv[2])
    # As on another host, whose processes nobody here can look at.
    lease = open_lease(root, lease_seconds=lease_seconds)
    if "--other-host" in sys.argv:
        lease._is_dead = lambda owner: None
    before = None
    while True:
        held = lease.tick()
        if held != before:
            sys.stdout.write(f"{'+' if held else '-'} {time.monotonic():.6f}\n")
            sys.stdout.flush()
            before = held
        if select.select([sys.stdin], [], [], 0.02)[0]:
            break
    if "--release" in sys.argv:
        sys.stdout.write(f"- {time.monotonic():.6f}\n")
        sys.stdout.flush()
        lease.release()


if __name__ == "__main__":
    main()
