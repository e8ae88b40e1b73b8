"""The settings of a scrub. Standard library only: ``kvshelf --help`` reads the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from kvshelf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """How a shelf is scrubbed.

    Attributes:
        megabytes_per_second: most that is read of chunk files, in 10**6 bytes; 0: no limit.
        files_per_second: most chunk files that are opened; 0: no limit.
        temp_hours: a temp file whose writer cannot be looked for is an orphan when it is so old.
        unused_days: a namespace that no engine has used for so long is removed; 0: never.
        minutes: stop after so long, to go on the next time; 0: at the end of the pass.
        dry_run: remove nothing, and neither read nor write the cursor.
        from_start: do not go on where the last scrub stopped.
        auth_key: the secret of engines with ``auth_key_file``, or nothing; without it their chunks'
            payloads are not judged.

    Raises:
        ConfigError: a number is negative, not finite, or a temp file's age is below an hour.
    """

    megabytes_per_second: float = 32.0
    files_per_second: float = 200.0
    temp_hours: float = 24.0
    unused_days: float = 0.0
    minutes: float = 0.0
    dry_run: bool = False
    from_start: bool = False
    auth_key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(each.name, value, "must be 0 or more")
            if each.name.endswith("_per_second") and 0 < value < 0.0001:
                raise ConfigError(each.name, value, "0, or 0.0001 or more")
        # Below that a store that waits for slow storage could look dead.
        if self.temp_hours < 1:
            raise ConfigError("temp_hours", self.temp_hours, "must be at least 1 hour")
