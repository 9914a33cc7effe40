"""What vLLM says of exported checkpoints. Run by the Python of an environment with vLLM, where harpe is not."""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
CORES = sorted(os.sched_getaffinity(0))


def ask(path: str, prompts: list, tokens: int, options: dict) -> dict:
    """Log-probabilities of the prompts' tokens, what is generated greedily, and its log-probabilities."""
    from vllm import LLM, SamplingParams

    if options.get("tensor_parallel_size", 1) > 1:  # vLLM wants to be told where there is one NUMA node
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{CORES[0]}|{CORES[-1]}"
    settings = {"model_impl": "transformers", "dtype": "float32", "skip_tokenizer_init": True, "seed": 0, **options}
    engine = LLM(model=path, **settings)
    sampling = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0, prompt_logprobs=0
    )
    found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    return {
        "prompts": [
            [value[token].logprob for token, value in zip(p[1:], f.prompt_logprobs[1:], strict=True)]
            for p, f in zip(prompts, found, strict=True)
        ],
        "ids": [list(f.outputs[0].token_ids) for f in found],
        "generated": [
            [v[t].logprob for t, v in zip(f.outputs[0].token_ids, f.outputs[0].logprobs, strict=True)] for f in found
        ],
    }


def main() -> None:
    import torch
    import transformers
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    root = Path(sys.argv[1])
    questions = json.loads((root / "questions.json").read_text())
    versions = {"vllm": vllm.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    answers = {"versions": {**versions, "platform": type(vllm.platforms.current_platform).__name__}}
    for name, options in questions["models"].items():
        try:
            answers[name] = ask(
                str(root / options.pop("folder", name)), questions["prompts"], questions["tokens"], options
            )
        except Exception as error:
            traceback.print_exc()
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        cleanup_dist_env_and_memory()
        (root / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
