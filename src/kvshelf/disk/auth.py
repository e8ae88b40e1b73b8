"""The key that authenticates chunk files (docs/format.md, "Authentication"). Tags are the native
core's business; here the key is read and named.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from kvshelf.errors import ConfigError

SETTING = "auth_key_file"
KEY_BYTES_MIN = 32
KEY_BYTES_MAX = 4096
KEY_ID_CHARS = 16


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The secret in a file: all of its bytes, without the line feed that an editor or shell adds.

    Raises:
        ConfigError: it cannot be read, or has fewer than 32 or more than 4096 bytes.
    """
    try:
        with Path(path).open("rb") as file:
            secret = file.read(KEY_BYTES_MAX + 2).rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(SETTING, str(path), f"a readable file ({reason})") from error
    if not KEY_BYTES_MIN <= len(secret) <= KEY_BYTES_MAX:
        raise ConfigError(
            SETTING,
            str(path),
            f"a file of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, not {len(secret)}; "
            "make one with: openssl rand -hex 32",
        )
    return secret


def key_id(secret: bytes) -> str:
    """16 hex digits that tell keys apart and say nothing about them: part of the identity, so that
    those who have different keys do not meet in one folder."""
    return hmac.digest(secret, b"kvshelf key id", "sha256").hex()[:KEY_ID_CHARS]
