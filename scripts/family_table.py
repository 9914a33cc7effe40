"""Run the tests of every family and write which of them passed, family by family, as docs/families.md.

    python scripts/family_table.py        (make families; some minutes)

A cell is what the test said: yes, or the reason of a skip (what a class does not have in transformers), or FAILED, in
which case the script ends with status 1.
"""

from __future__ import annotations

import datetime
import re
import sys
from importlib.metadata import version

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from families_tested import ROOT, failed, outcomes

CHECKS = {
    "test_equal_bases_are_the_stock_model": "equal bases = stock",
    "test_every_head_is_rotated_as_a_stock_model_with_its_base_rotates_it": "head by head",
    "test_scores_depend_on_distance_alone": "distance only",
    "test_permuting_bases_and_heads_together_permutes_the_rotated_heads": "permutation",
    "test_generation_with_either_cache_equals_forward_passes_without": "caches",
    "test_left_padding_in_a_batch_of_unequal_lengths_changes_nothing": "left padding",
    "test_eager_and_sdpa_attention_agree": "SDPA = eager",
    "test_one_graph_without_breaks_gives_the_same_logits": "one graph",
    "test_bases_written_as_tables_are_the_same_bits": "tables",
    "test_pairs_that_do_not_turn_stay_and_others_turn_as_before": "still pairs",
    "test_every_head_is_rotated_as_a_stock_model_rotates_it_times_its_factor": "factor by head",
    "test_queries_and_no_keys_are_those_of_the_model_without_it_times_the_formula": "scale by length",
    "test_logits_are_those_of_the_same_table_of_integers_bit_for_bit": "float tables",
}
"""Heading of every test's column."""
FILES = [
    f"test_{name}.py"
    for name in ("families", "export_versions", "compiled", "tables", "fold", "attention_factor", "length_scale")
]
FILES.append("test_float_tables.py")
OTHERS = {
    "test_exported_checkpoints_load_with_the_same_logits[all-5.17.0]": (
        "Exports of all families, loaded by transformers 5.17.0"
    ),
    "test_exported_checkpoints_load_with_the_same_logits[all-5.20.0]": (
        "Exports of all families, loaded by transformers 5.20.0"
    ),
    "test_transformers_4_refuses_instead_of_loading_a_stock_model[all]": "All of them refused by transformers 4.57.6",
    "test_inductor_gives_the_same_logits[gpt_neox]": "GPT-NeoX compiled by Inductor (Llama and Gemma 3: `make slow`)",
}
"""What is said below the table: of all families at once, or of one beside the representatives in `make slow`."""


def attentions(family: str) -> str:
    """The implementations that the family's class declares."""
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(family))]
    flags = {"sdpa": "_supports_sdpa", "flex": "_supports_flex_attn", "flash": "_supports_flash_attn"}
    return ", ".join(["eager", *(name for name, flag in flags.items() if getattr(cls, flag, False))])


def _skipped(reason: str) -> str:
    return "refused" if reason.startswith("refused") else "none in transformers"


def main() -> int:
    cases = outcomes(FILES, "not slow")
    cells: dict[str, dict[str, str]] = {}
    others = dict.fromkeys(OTHERS, "not run")
    some_failed = False
    for case in cases:
        match = re.fullmatch(r"(\w+)\[(.+)\]", case.attrib["name"])
        skip, bad = case.find("skipped"), failed(case)
        some_failed |= bad
        if case.attrib["name"] in OTHERS and skip is None:
            others[case.attrib["name"]] = "FAILED" if bad else "yes"
        if match is None or match[1] not in CHECKS:
            continue
        cells.setdefault(match[2], {})[match[1]] = (
            "FAILED" if bad else "yes" if skip is None else _skipped(str(skip.get("message")))
        )
    lines = [
        "# Families",
        "",
        "Which model families can have one RoPE base per head is found out by trying, when a model is loaded: any "
        "decoder of transformers",
        "that rotates queries and keys by `apply_rotary_pos_emb` and is told its positions by cos and sin qualifies. "
        "These are tested,",
        "each on a small random model; the table is written by `make families` from the results of the tests.",
        "",
        "| family | " + " | ".join(CHECKS.values()) + " | attentions in transformers |",
        "|---|" + "---|" * (len(CHECKS) + 1),
    ]
    for family in sorted(cells):
        told = [cells[family].get(test, "not run") for test in CHECKS]
        lines.append(f"| {family} | " + " | ".join([*told, attentions(family)]) + " |")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines += [
        "",
        "* equal bases = stock: logits of the stock model with cos and sin computed in float64, to 1e-5 of the "
        "largest.",
        "* head by head: each key/value head and its queries as one stock rotary module with that base rotates them.",
        "* distance only: scores stay within 1e-5 of the largest when all positions move by 1, 1,000 and 100,000.",
        "* caches: greedy tokens with the dynamic and with the static cache are those of forward passes without a "
        "cache.",
        "* one graph: `torch.compile(fullgraph=True)` with the backend `eager`.",
        "* tables: bases written as frequencies of every head give the same bits; still pairs: frequencies of 0.",
        "* factor by head, scale by length: what a stock model turns, times the factor or the formula. Refused where a "
        "norm would undo it.",
        "* float tables: those with gradients, bit for bit.",
        "",
        *(f"* {text}: {others[test]}." for test, text in OTHERS.items()),
        "",
        "Refused with the reason: latent attention (DeepSeek), which has one rotary key for all heads; positions in "
        "several dimensions",
        "(Qwen2-VL, Qwen 3.5); layers that rotate otherwise than their configuration says, or not at all (Granite 4 "
        "hybrids without",
        "positions, the single key head of Falcon 7B); a base that stands in the code (GPT-J); attention beside a "
        "recurrent state in",
        "one layer (Falcon-H1); RoPE in windowed layers only (Cohere 2); rotations of another kind (Llama 4). Layers "
        "with a sliding window",
        "and layers without RoPE keep what they have; the plan names the layers that change. Models with vision are "
        "extended in their text",
        "decoder.",
        "",
        f"Made on {datetime.date.today().isoformat()} with {versions}, CPU.",
        "",
    ]
    (ROOT / "docs" / "families.md").write_text("\n".join(lines), encoding="utf-8")
    return int(some_failed)


if __name__ == "__main__":
    sys.exit(main())
