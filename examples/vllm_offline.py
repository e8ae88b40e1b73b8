"""vLLM in a script: run it twice, and the second run finds the first one's prefix on the shelf."""

import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

if __name__ == "__main__":
    model, document, root = sys.argv[1:]  # MODEL DOCUMENT.txt /mnt/shared/kv
    shelf = KVTransferConfig(
        kv_connector="KvshelfConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": root},
    )
    prefix = Path(document).read_text()
    llm = LLM(model=model, kv_transfer_config=shelf)
    questions = ["What is it about?", "Who wrote it?"]
    prompts = [f"{prefix}\n\nQuestion: {question}\nAnswer:" for question in questions]
    for request in llm.generate(prompts, SamplingParams(max_tokens=64)):
        print(f"{request.num_cached_tokens} tokens found:{request.outputs[0].text}")
