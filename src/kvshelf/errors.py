"""The exceptions of kvshelf.

    KvshelfError
    ├── ConfigError (ValueError)          a setting is wrong; raised at start only
    ├── NotAShelfError (KvshelfError)     a root that is not ours and may not become ours
    ├── ResourceError (RuntimeError)      no thread or memory to be had
    ├── ChunkFormatError (ValueError)     bytes that are no chunk file header
    └── EngineClosedError (RuntimeError)  a call after close()

What happens to one chunk file is never an exception: it is a ``FileStatus`` in a ``JobResult``
(see ``kvshelf.engine.base``), because a missing or damaged chunk is an ordinary result.
"""

from __future__ import annotations


class KvshelfError(Exception):
    """Base of every exception that kvshelf raises on purpose."""


class ConfigError(KvshelfError, ValueError):
    """A setting is unknown, malformed or contradicts another one.

    Attributes:
        setting: name of the setting as the user wrote it.
        value: the value that was given.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting}={value!r}: {allowed}")
        self.setting = setting
        self.value = value
        self.allowed = allowed


class NotAShelfError(KvshelfError):
    """The directory holds data that is not ours, so it cannot be used as a shelf root."""


class ResourceError(KvshelfError, RuntimeError):
    """The system gives no thread; the text names the limit."""


class ChunkFormatError(KvshelfError, ValueError):
    """The bytes are not the header of a chunk file of this format version."""


class EngineClosedError(KvshelfError, RuntimeError):
    """The engine was closed; no call but ``close`` is allowed any more."""
