"""Calls that are wrong usage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvshelf.cli.main import main


def refused(line: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of stderr; the status is that of wrong usage, from us or from argparse."""
    try:
        status = main(line)
    except SystemExit as error:
        status = int(error.code or 0)
    assert status == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err.splitlines()[-1]
