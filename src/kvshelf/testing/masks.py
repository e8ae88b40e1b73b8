"""The conformance suite on masked keys: chunks of another epoch under names of their own."""

from __future__ import annotations

import dataclasses

import pytest

from kvshelf.disk.keys import make_key, make_mask, masked_all
from kvshelf.disk.layout import chunk_path_in
from kvshelf.engine import FileStatus, Phase
from kvshelf.testing.memory import Setup

OK = FileStatus.OK


class MaskTests:
    def test_lookups_of_masked_keys_find_the_masked_chunks(self, setup: Setup) -> None:
        keys = [make_key(bytes([i]) * 32, i % 3) for i in range(20)]
        mask = make_mask("an epoch")
        stored = masked_all(keys[:9], mask)
        batch = setup.batch(*((i, [i % 8], 0) for i in range(len(stored))))
        paths = [chunk_path_in("ns/r0", key) for key in stored]
        batch = dataclasses.replace(batch, paths=paths, keys=stored)
        assert set(setup.statuses("store", batch)) == {OK}
        for job_id, asked, used in ((900, keys, mask), (901, keys, b""), (902, stored, b"")):
            setup.engine.submit_lookup_keys(job_id, ["ns/r0"], asked, (), used)
            assert setup.engine.wait([job_id], Phase.FINISHED, 20)
            (report,) = setup.engine.poll()
            found = sum(status is OK for status in report.statuses)
            assert found == (0 if job_id == 901 else len(stored))
            assert list(report.statuses[:found]) == [OK] * found
        for wrong in (mask[:31], b"x"):
            with pytest.raises(ValueError, match="mask"):
                setup.engine.submit_lookup_keys(903, ["ns/r0"], keys, (), wrong)
