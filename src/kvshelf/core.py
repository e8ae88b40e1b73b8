"""The compiled core, or a plain word about why it is not there. No other module imports it."""

from __future__ import annotations

try:
    # The stub is made by the build, so mypy may not see it: `from kvshelf import` would not check.
    import kvshelf._native as native
except ImportError as error:  # pragma: no cover - depends on how kvshelf was installed
    raise ImportError(
        "the native core of kvshelf is missing or was built for another Python; "
        f"build it with: pip install --no-build-isolation . ({error})"
    ) from error

__all__ = ["native"]
