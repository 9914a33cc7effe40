"""Run tests of families and give what became of each: for scripts that write tables of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parent.parent


def outcomes(files: list[str], marks: str) -> list[ElementTree.Element]:
    """The `testcase` elements of pytest's report on files of tests/models."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = [f"tests/models/{name}" for name in files]
        command = [sys.executable, "-m", "pytest", *paths, "-m", marks, f"--junitxml={report}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        return list(ElementTree.parse(report).iter("testcase"))


def failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None
