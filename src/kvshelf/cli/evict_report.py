"""What ``kvshelf evict`` prints of a report as JSON."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from kvshelf.upkeep.evict.report import Report


def as_json(report: Report, *, dry_run: bool) -> dict[str, Any]:
    volume = report.volume
    return {
        "document": "kvshelf.evict/1",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": report.state.value,
        "dry_run": dry_run,
        "removed_files": report.removed.files,
        "removed_bytes": report.removed.bytes,
        "removed_temp_files": report.leftovers.files,
        "removed_temp_bytes": report.leftovers.bytes,
        "cut_age_seconds": report.cut_age_seconds,
        "spared_files": report.spared,
        "seconds": round(report.seconds, 3),
        "namespaces": {folder: asdict(amount) for folder, amount in report.usage.items()},
        "volume": {
            "used_bytes": volume.used_bytes,
            "total_bytes": volume.total_bytes,
            "used_inodes": volume.used_inodes,
            "total_inodes": volume.total_inodes,
            "used_percent": volume.used_percent,
            "used_inode_percent": volume.used_inode_percent,
        },
        "exceeded": [
            {"limit": need.reason, "namespace": need.folder, **asdict(need.amount + need.short)}
            for need in report.needs
        ],
        "no_effect": [
            {"limit": reason, "files" if reason == "inode_percent" else "bytes": amount}
            for reason, amount in report.unfreed.items()
        ],
        "room_requests": report.room_requests,
        "foreign": {"count": report.foreign, "examples": list(report.foreign_examples)},
        "unread": list(report.unread),
        "unseen_folders": report.unseen,
        "held": {
            **asdict(report.held.amount),
            "errnos": {str(number): times for number, times in report.held.by_errno.items()},
            "examples": list(report.held.examples),
        },
        "faults": {str(number): times for number, times in report.faults.items()},
    }
