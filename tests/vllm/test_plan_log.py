"""The request log as vLLM itself writes it, read by ``kvshelf plan``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.plan.read import read_trace
from tests.plan.traces import blocks_of

pytestmark = pytest.mark.vllm

# Up to some version vLLM configures its log when it is imported, later when a server starts.
CODE = """
import vllm.logger
from vllm.entrypoints.serve.utils.request_logger import RequestLogger
from vllm.sampling_params import SamplingParams

if hasattr(vllm.logger, "configure_logging"):
    from vllm.config.logging import LoggingConfig

    vllm.logger.configure_logging(LoggingConfig())
log = RequestLogger(max_log_len=None)
for name, prompt, tokens in (
    ("a", "one, prompt_token_ids: [7, 7], prompt_embeds shape: None.\\nlines", list(range(40))),
    ("b", None, [*range(16), *range(100, 124)]),
    ("c", "no tokens", None),
):
    log.log_inputs(name, prompt, tokens, None, SamplingParams(), None)
"""


@pytest.mark.slow
def test_vllms_own_log(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        check=True,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG"},
    )
    path = tmp_path / "vllm.log"
    path.write_text(done.stdout + done.stderr)
    trace = read_trace(path, block_tokens=16)
    assert blocks_of(trace) == [[0, 1], [0, 2]]
    assert trace.prompt_tokens.tolist() == [40, 40]
