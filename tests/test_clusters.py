"""Every file of recipes/clusters starts a command that harpe takes, and is what its program reads."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from harpe.cli.parser import build_parser, options_of

FOLDER = Path(__file__).parents[1] / "recipes" / "clusters"


def taken(words: list[str]) -> Any:
    """The options of `extend …`, in which variables of the shell are numbers."""
    words = ["2" if word.startswith("$") else word for word in words]
    return options_of(build_parser("harpe").parse_args(words))


def after(text: str, command: str) -> list[str]:
    """The words of a shell command that goes on over lines, behind `command`."""
    found = text.replace("\\\n", " ").split(command, 1)[1].split("\n", 1)[0]
    return shlex.split(re.sub(r'"\$\{[A-Z]+\[@\]\}"', "", found))


def check(options: Any) -> None:
    assert (options.length, options.sequence_parallel, options.replicas, options.batch_tokens) == (131072, 8, 2, 2**21)


def test_the_slurm_script_is_bash_and_starts_harpe() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    check(taken(["extend", *after((FOLDER / "slurm.sh").read_text(), "=1 harpe extend")]))


def test_the_skypilot_file_starts_harpe() -> None:
    check(taken(after(yaml.safe_load((FOLDER / "skypilot.yaml").read_text())["run"], "-m harpe")))


def test_the_kubernetes_file_starts_harpe() -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    spec = job["spec"]["template"]["spec"]
    words = spec["containers"][0]["args"]
    check(taken(words[words.index("harpe") + 1 :]))
    assert spec["subdomain"] == service["metadata"]["name"] and job["spec"]["completions"] == 2
    assert words[words.index("--nnodes") + 1] == "2" and words[words.index("--master-addr") + 1] == "harpe-0.harpe"


@pytest.mark.parametrize(("name", "processes"), [("accelerate-1-node.yaml", 8), ("accelerate-2-nodes.yaml", 16)])
def test_accelerate_reads_its_files_and_shards_nothing_itself(name: str, processes: int) -> None:
    config = load_config_from_file(str(FOLDER / name))
    assert (config.num_processes, config.distributed_type, config.mixed_precision) == (processes, "MULTI_GPU", "no")
    assert not config.fsdp_config and not config.deepspeed_config


def test_every_file_is_named_in_the_page_on_scaling() -> None:
    page = (FOLDER.parents[1] / "docs" / "scaling.md").read_text() + (FOLDER / "accelerate-2-nodes.yaml").read_text()
    assert [path.name for path in FOLDER.iterdir() if path.name not in page] == []
