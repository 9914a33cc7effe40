"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harpe.cli.main import main
from harpe.cli.parser import field_help
from harpe.cli.verbs import VERBS, options_class

# HARPE, arXiv 2412.07171, table 2, in millions
TABLE_2 = """1.00 1.15 1.30 1.45 2.17 2.20 2.23 2.47 2.50 2.65 2.68 2.71 2.74 2.80 2.83 2.92
             3.01 3.04 3.10 3.13 3.16 3.22 3.43 3.46 3.61 3.88 4.09 4.15 4.39 4.45 4.51 4.54"""


def harpe(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "harpe", *arguments], capture_output=True, text=True, env=environment, cwd=cwd
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, run in this process, where torch is loaded already."""
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_published_bases_are_printed_as_one_json_object_and_nothing_else() -> None:
    done = harpe(
        "bases", "--heads", "32", "--head-dim", "128", "--length", "131072", "--min", "1e6", "--max", "5e6",
        "--stride", "3e4",
        "--strategy", "peak-valley", "--rule", "published", "--json",
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert [round(base / 1e6, 2) for base in value["bases"]] == [float(word) for word in TABLE_2.split()]
    assert sorted(value["order"]) == value["bases"] and value["order"] != value["bases"]
    assert value["schema_version"] == 1 and done.stderr == ""


def test_bases_of_a_checkpoint_are_read_from_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    bases = json.loads(printed(capsys, "bases", "--model", "embedded", "--length", "2048", "--json"))["bases"]
    critical = 10_000 ** (math.log(2048 / 2 / math.pi) / math.log(256 / 2 / math.pi))
    assert len(bases) == 8
    assert (bases[0], bases[-1]) == (
        pytest.approx(0.726 * critical, rel=1e-3),
        pytest.approx(3.63 * critical, rel=1e-3),
    )


def test_options_override_what_a_checkpoint_says(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(
        printed(capsys, "bases", "--model", "embedded", "--length", "2048", "--heads", "3", "--min", "1e5", "--json")
    )
    assert len(value["bases"]) == 3 and value["min"] == 1e5 and value["head_dim"] == 32


def test_a_table_and_figures_are_written(tmp_path: Path) -> None:
    done = harpe(
        "bases", "--model", "embedded", "--length", "2048", "--strategy", "peak-valley", "--out", str(tmp_path / "set")
    )
    assert "complementarity" in done.stdout and "the general rule" in done.stdout
    value = json.loads((tmp_path / "set" / "bases.json").read_text())
    assert value["rule"] == "general" and value["comparison"]["random_sets"]["sets"] == 1000
    assert value["complementarity"]["covered"] > value["comparison"]["random_sets"]["p95"]
    for name in ("waveforms", "coverage", "number-line"):
        ElementTree.parse(tmp_path / "set" / f"{name}.svg")


def test_bases_of_every_layer_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--heads", "2", "--head-dim", "64", "--layers", "3", "--length", "8192", "--min", "1e5", "--max", "1e6")
    value = json.loads(
        printed(capsys, "bases", *options, "--strategy", "log-uniform", "--layer-bases", "own", "--json")
    )
    assert len(value["bases"]) == 6 and sorted(b for row in value["layers"] for b in row) == value["bases"]
    assert "layer 2" in printed(capsys, "bases", *options, "--layer-bases", "permuted", "--assignment", "random")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bases", "--length", "4096"], "missing: --heads, --head-dim, --min, --max"),
        (["bases", "--model", "/nowhere", "--length", "4096"], "no checkpoint folder"),
        (["bases", "--model", "embedded", "--length", "100"], "not longer"),
        (["bases", "--model", "embedded", "--length", "2048", "--assignment", "adaptive"], "give --model and --data"),
        (["bases", "--model", "embedded", "--length", "2048", "--data", "embedded"], "adaptive only"),
        (["bases", "--model", "embedded", "--length", "2048", "--layers", "2"], "read from --model"),
        (
            [
                "bases",
                "--model",
                "embedded",
                "--length",
                "2048",
                "--strategy",
                "uniform-descending",
                "--assignment",
                "random",
            ],
            "use uniform",
        ),
        (
            ["bases", "--heads", "0", "--head-dim", "64", "--length", "9999", "--min", "2", "--max", "3"],
            "at least one key/value head",
        ),
        (["evaluate", "embedded", "--data", "embedded"], "--out is missing"),
        (["report", "/nowhere"], "There is no folder"),
        (["export", "/nowhere", "--out", "OUT"], "no checkpoint folder"),
        (["export", "embedded", "--out", "OUT"], "not extended by harpe"),
        (["export", "embedded", "--out", "OUT", "--method", "harpe"], "embedded is none"),
        (["extend", "embedded", "--length", "2048", "--data", "/nowhere", "--out", "OUT"], "no such file or folder"),
    ],
)
def test_problems_are_one_sentence_on_standard_error_with_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out") if a == "OUT" else a for a in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


def test_a_problem_ends_the_process_with_exit_code_2() -> None:
    done = harpe("bases", "--model", "/nowhere", "--length", "4096")
    assert done.returncode == 2 and "no checkpoint folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_the_verb_and_every_option(verb: str) -> None:
    texts = field_help(options_class(verb))
    done = harpe(verb, "--help")
    shown = " ".join(done.stdout.split())
    assert (options_class(verb).__doc__ or "").split(".")[0].split()[0] in shown
    for name, text in texts.items():
        assert name.replace("_", "-") in shown or name in shown
        assert " ".join(text.split()) in shown


def test_options_come_from_a_yaml_file_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "bases.yaml").write_text("heads: 4\nhead_dim: 64\nlength: 8192\nmin: 100000\nmax: 400000\njson: true\n")
    value = json.loads(harpe("bases", "--config", str(tmp_path / "bases.yaml"), "--max", "700000").stdout)
    assert value["bases"] == [100_000, 300_000, 500_000, 700_000]


def test_an_unknown_option_is_told() -> None:
    done = harpe("bases", "--lenght", "4096")
    assert done.returncode == 2 and "lenght" in done.stderr


@pytest.mark.parametrize("wrong", ["many", "inf", "nan", "1.5", "6e9x", ""])
def test_what_is_no_whole_number_is_told_without_a_traceback(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bases", "--heads", "4", "--head-dim", "64", "--length", wrong])
    assert ended.value.code == 2 and "--length" in capsys.readouterr().err


@pytest.mark.parametrize("length", ["8192", "8.192e3", "8192.0"])
def test_a_whole_number_may_be_written_with_an_exponent(length: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["bases", "--heads", "4", "--head-dim", "64", "--length", length, "--min", "1e5", "--max", "4e5", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["bases"] == [100_000, 200_000, 300_000, 400_000]
