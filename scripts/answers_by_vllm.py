"""What vLLM takes for the prompts of `scripts/benchmark_answers.py`.

Run by the Python of an environment with vLLM, where harpe is not (`scripts/vllm_check.py` says how to make one).

    build/vllm/bin/python scripts/answers_by_vllm.py CHECKPOINT ASKED.json ANSWERED.json
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
STEPS = 64
"""Steps of decoding that are timed behind prompts that are in the cache already."""


def main() -> None:
    import vllm

    checkpoint, asked, answered = sys.argv[1:]
    questions = json.loads(Path(asked).read_text())
    engine = vllm.LLM(
        model=checkpoint, dtype=questions["dtype"], skip_tokenizer_init=True, seed=0, max_model_len=questions["room"]
    )

    def answer(prompts: list, tokens: int, **settings: object) -> tuple[float, list]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, **settings)
        start = time.perf_counter()
        found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - start, [list(each.outputs[0].token_ids) for each in found]

    answer([list(range(100, 400))], 8)  # compiles
    told = {"version": vllm.__version__, "tasks": {}, "decoding": []}
    for name, (prompts, tokens) in questions["tasks"].items():
        seconds, ids = answer(prompts, tokens, stop_token_ids=questions["ends"])
        told["tasks"][name] = {"wall": seconds, "ids": ids}
    for prompts in questions["decoding"]:
        answer(prompts, 1)
        ends = [answer(prompts, count, ignore_eos=True)[0] for count in (1, 1 + STEPS) * 3]
        told["decoding"].append((min(ends[1::2]) - min(ends[::2])) / STEPS)
    Path(answered).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
