"""vLLM's CPU build in this process, all requests in one engine, its prefix cache on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from benchmarks.peers.child import Job, Reply, peak_memory
from benchmarks.peers.work import Request, open_image


class VLLM:
    """The engine, driven step by step so that each token's time is seen."""

    def __init__(self, job: Job) -> None:
        _set_environment(job)
        from transformers import AutoTokenizer
        from vllm import LLM

        self._job = job
        self._tokenizer = AutoTokenizer.from_pretrained(job.model)
        model = LLM(
            model=job.model,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=16,
            limit_mm_per_prompt={"image": 1},
            disable_log_stats=True,
            enforce_eager=True,
            seed=0,
        )
        self._engine: Any = model.llm_engine
        self._asked = 0

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        images = [open_image(self._job.image(request.image)) for request in requests]
        began = time.perf_counter()
        names = [self._add(request, image) for request, image in zip(requests, images, strict=True)]
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        tokens: dict[str, Sequence[int]] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.outputs[0].token_ids:
                    last[output.request_id] = time.perf_counter() - began
                    first.setdefault(output.request_id, last[output.request_id])
                    tokens[output.request_id] = list(output.outputs[0].token_ids)
        return [
            Reply(first[name], last[name], len(tokens[name]), self._text(tokens[name]))
            for name in names
        ]

    def peak_memory(self) -> int:
        return peak_memory()

    def close(self) -> None:
        pass

    def _add(self, request: Request, image: PILImage.Image) -> str:
        from vllm import SamplingParams

        tokens = self._tokenizer(request.prompt("<image>"))["input_ids"]
        prompt = {"prompt_token_ids": tokens, "multi_modal_data": {"image": image}}
        params = SamplingParams(
            temperature=0, max_tokens=request.max_tokens, ignore_eos=True, detokenize=False
        )
        self._asked += 1
        name = str(self._asked)
        self._engine.add_request(name, prompt, params)
        return name

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()


def _set_environment(job: Job) -> None:
    """Keep vLLM in one process, on the first cores that this one may use, and silent."""
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        # GiB; the requests need a small part of it.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CACHE_ROOT": str(Path(job.folder) / "vllm-cache"),
    }


start = VLLM
