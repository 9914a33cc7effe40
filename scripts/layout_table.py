"""Train every family by two processes, and write what came out, family by family, as docs/layouts.md.

    python scripts/layout_table.py        (some minutes)

A cell says yes, where four losses of two processes are those of one to 1e-5, or why the family is refused; FAILED ends
the script with status 1.
"""

from __future__ import annotations

import datetime
import re
import sys
from importlib.metadata import version

from families_tested import ROOT, failed, outcomes

LAYOUTS = ("data parallel", "sequence parallel")


def main() -> int:
    cases = outcomes(["test_family_layouts.py"], "slow or matrix")
    rows = []
    for case in sorted(cases, key=lambda case: case.attrib["name"]):
        family = re.sub(r".*\[(.+)\]", r"\1", case.attrib["name"])
        told = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        rows.append(f"| {family} | " + " | ".join(told.get(layout, "FAILED") for layout in LAYOUTS) + " |")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "deepspeed"))
    lines = [
        "# Families in several processes",
        "",
        "Small random models of every family, trained for four steps by one process and by two (gloo, float32, a base "
        "of its own for",
        "every key/value head): yes where all losses agree to 1e-5, else the sentence by which it is refused.",
        "Windows are 16 tokens in sequences of 64. Written by `scripts/layout_table.py`.",
        "",
        "| family | data parallel, FSDP2 | sequence parallel |",
        "|---|---|---|",
        *rows,
        "",
        f"Made on {datetime.date.today().isoformat()} with {versions}, CPU.",
        "",
    ]
    (ROOT / "docs" / "layouts.md").write_text("\n".join(lines), encoding="utf-8")
    return int(any(failed(case) for case in cases))


if __name__ == "__main__":
    sys.exit(main())
