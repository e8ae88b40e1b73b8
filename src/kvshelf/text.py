"""Numbers as people read them. Pure."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Three digits and a decimal unit: "1.23 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5 or unit == "PB":
            break
        count /= 1000
    digits = 0 if unit == "B" else max(0, 2 - len(str(int(count))) + 1)
    return f"{count:.{digits}f} {unit}"


# Up to which age in seconds a unit is used, and its own length.
_AGE_UNITS = (("s", 90, 1), ("min", 5400, 60), ("h", 172_800, 3600))


def age_text(seconds: float | None) -> str:
    """Two digits and a unit: "45 s", "3.2 h"; "-" for none."""
    if seconds is None:
        return "-"
    unit, length = "d", 86_400
    for smaller, limit, its_length in _AGE_UNITS:
        if seconds < limit:
            unit, length = smaller, its_length
            break
    count = seconds / length
    return f"{count:.1f} {unit}" if count < 9.95 and unit != "s" else f"{count:.0f} {unit}"
