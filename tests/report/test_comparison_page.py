"""The page of a comparison and its tables show what the files say: values, intervals, differences, failures."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.files import write_json
from harpe.report.page import write_report
from harpe.report.published import published
from harpe.report.terminal import main_table

PAPER_LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)


@pytest.fixture
def run(small_comparison: Path) -> Path:
    return small_comparison


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, **entries: Any) -> None:
    write_json(path, read(path) | entries)


def words(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def tables(page: str) -> dict[str, list[list[str]]]:
    """All tables with scores by their name: for every line its cells' text, the first one the method's."""
    found = {}
    for name, table in re.findall(
        r'role="region" aria-label="([^"]*)">\s*<table class="scores[^"]*">(.*?)</table>', page, re.DOTALL
    ):
        lines = re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
        found[html.unescape(name)] = [
            [words(c) for c in re.findall(r"<t[hd][ >].*?</t[hd]>", line, re.DOTALL)] for line in lines
        ]
    return found


def shown(value: dict[str, Any], unit: str) -> str:
    """A value as the page writes it: a perplexity with two decimals, per cent with one; the interval; n."""
    ends = [value[key] for key in ("value", "low", "high")]
    if unit == "nats":
        a, b, c = (f"{math.exp(v):.2f}" for v in ends)
        return f"{a} {b}–{c} n = {value['seeds']} × {value['documents']}"
    a, b, c = (f"{v:.1f}" for v in ends)
    return f"{a}% {b}–{c}% n = {value['seeds']} × {value['documents']}"


def test_every_cell_of_the_main_table_is_the_summarys_value_with_interval_seeds_and_documents(run: Path) -> None:
    rows = tables(write_report(run).read_text())["Results at the target length"]
    summary, plan = read(run / "summary.json"), read(run / "plan.json")
    measures = {m["id"]: m for m in summary["measures"]}
    names = [
        "loss-short",
        "loss-long",
        *(f"needles-{t}-2048" for t in ("single", "multi_key", "multi_query", "multi_value")),
    ]
    names += ["needles-mean-2048", "grid-mean"]
    assert len(rows) == len(plan["methods"]) == 5
    for method, row in zip(plan["methods"], rows, strict=True):
        assert method["title"] in row[0]
        assert ("baseline" in row[0]) == (method["name"] == "abf") and ("control" in row[0]) == method["control"]
        for name, cell in zip(names, row[1:], strict=True):
            m = measures[name]
            if method["name"] == "longrope":
                assert cell == "failed"
                continue
            value, d = shown(m["values"][method["name"]], m["unit"]), m["differences"].get(method["name"])
            side = ""
            if d and d["real"]:
                side = ("better" if (d["value"] > 0) == (m["better"] == "higher") else "worse") + " than the baseline: "
            assert cell == side + value


def test_differences_are_the_summarys_with_corrected_p_and_a_verdict_in_words(run: Path) -> None:
    found = tables(write_report(run).read_text())
    measures = {m["id"]: m for m in read(run / "summary.json")["measures"]}
    seen = set()
    for title, name in (
        ("Loss at positions 1,024 to 2,048", "loss-long"),
        ("Needle mean at 2,048", "needles-mean-2048"),
    ):
        m, digits = measures[name], 3 if name == "loss-long" else 1
        rows = {row[0]: row for row in found[title]}
        assert len(rows) == 4  # all but the baseline
        for method, label in (
            ("none", "untouched"),
            ("control-middle", "one base, arithmetic middle"),
            ("harpe", "HARPE, peak-valley"),
        ):
            d = m["differences"][method]
            value, interval, p, holm, verdict = next(row for head, row in rows.items() if head.startswith(label))[1:6]
            a, b, c = (f"{d[key]:+.{digits}f}".replace("-", "−") for key in ("value", "low", "high"))
            seeds = "1 and 3" if method == "none" else "3"
            assert (value, interval) == (f"{a} n = {seeds} × {m['documents']}", f"{b} to {c}")
            for text, number in ((p, d["p"]), (holm, d["holm"])):
                assert text == ("< 0.001" if number < 0.001 else f"{number:.3f}")
            side = "better" if (d["value"] > 0) == (m["better"] == "higher") else "worse"
            assert verdict == (f"real: {side}" if d["real"] else "not shown")
            seen.add(verdict)
    assert seen == {"real: better", "real: worse", "not shown"}


def test_the_csv_holds_every_value_in_full_precision_and_says_what_failed(run: Path) -> None:
    write_report(run)
    rows = list(csv.DictReader(io.StringIO((run / "report" / "tables.csv").read_text())))
    summary = read(run / "summary.json")
    assert len(rows) == len(summary["measures"]) * 5
    by_key = {(row["measure"], row["method"]): row for row in rows}
    for m in summary["measures"]:
        assert by_key[m["id"], "longrope"]["status"] == "failed" and by_key[m["id"], "longrope"]["value"] == ""
        for name, value in m["values"].items():
            row = by_key[m["id"], name]
            assert [float(row[key]) for key in ("value", "low", "high")] == [
                value[key] for key in ("value", "low", "high")
            ]
            assert (int(row["seeds"]), int(row["documents"])) == (value["seeds"], value["documents"])
            assert [float(v) for v in row["by_seed"].split()] == value["by_seed"]
            if name != "abf":
                d = m["differences"][name]
                assert (float(row["difference"]), float(row["p_holm"])) == (d["value"], d["holm"])
                assert row["verdict"].startswith("real") == d["real"]


@pytest.mark.parametrize("title", ["=1+1", "+a", "-a", "@SUM(A1)"])
def test_no_cell_of_text_in_the_csv_is_computed_by_a_spreadsheet(run: Path, title: str) -> None:
    plan = read(run / "plan.json")
    plan["methods"][1]["title"] = title
    write_json(run / "plan.json", plan)
    write_report(run)
    rows = list(csv.DictReader(io.StringIO((run / "report" / "tables.csv").read_text(), newline="")))
    titles = {row["method_title"] for row in rows if row["method"] == plan["methods"][1]["name"]}
    assert titles == {f"'{title}"}


def test_the_markdown_has_the_cells_of_the_page_and_every_table_is_a_rectangle(comparison: Any, tmp_path: Path) -> None:
    run = comparison(tmp_path / "run", ruler=(512, 2048))
    plan = read(run / "plan.json")
    plan["methods"][1]["title"] = "a | b\n<script>"
    write_json(run / "plan.json", plan)
    page = write_report(run).read_text()
    text = (run / "report" / "tables.md").read_text()
    assert "<script>" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    for row in tables(page)["Results at the target length"]:
        for cell in row[1:]:
            value = re.sub(r"^(better|worse) than the baseline: ", "", cell)
            parts = value.split(" ", 2)
            assert (f"{parts[0]} ({parts[1]}; {parts[2]})" if len(parts) == 3 else value) in text


PAPER: dict[int, dict[str, list[float | None]]] = {
    3: {
        "none": [4336.96, 7289.38],
        "pi": [20.73, 11.47],
        "abf": [3.06, 3.58],
        "abf-staged": [3.03, 3.57],
        "yarn": [4.53, 4.52],
        "self-extend": [5.45, 3.76],
        "harpe": [3.02, 3.54],
    },
    4: {
        "none": [90.90, None, None, None, None, None, None],
        "pi": [77.56, 26.59, 16.50, 0, 0, 0, 20.11],
        "abf": [92.44, 88.78, 84.16, 78.03, 70.81, 62.72, 79.49],
        "abf-staged": [95.19, 91.72, 87.53, 78.84, 72.78, 62.13, 81.36],
        "yarn": [83.88, 73.66, 64.84, 46.53, 12.69, 0, 46.93],
        "self-extend": [76.47, 66.25, 58.84, 52.16, 1.38, 0, 42.52],
        "harpe": [97.03, 96.88, 93.72, 86.66, 79.41, 67.19, 86.82],
    },
    5: {
        "abf": [40.87, 77.33, 52.82, 78.56, 62.39, 62.39],
        "abf-staged": [41.10, 77.83, 52.65, 78.56, 63.29, 62.69],
        "harpe": [40.74, 77.99, 52.73, 78.56, 63.72, 62.75],
    },
    6: {
        "harpe": [86.82],
        "harpe-peak-valley-10k": [84.51],
        "harpe-peak-valley-20k": [85.57],
        "harpe-peak-valley-30k": [86.82],
        "harpe-peak-valley-40k": [84.69],
        "harpe-peak-valley-50k": [83.68],
        "harpe-uniform-ascending": [84.30],
        "harpe-uniform-descending": [85.30],
    },
    7: {"harpe": [88.48, 83.44, 74.87, 68.10, 55.64, 51.88, 70.40]},
    8: {"harpe": [100.00, 100.00, 99.83, 93.17, 82.67, 55.00, 79.67, 84.2]},
}
"""The paper's Tables 3 to 8, typed from the paper and not from the package."""


def test_the_published_figures_are_the_papers() -> None:
    ours = published("llama2-7b-128k")
    assert {
        number: {name: list(row) for name, row in table.rows.items()} for number, table in ours.tables.items()
    } == PAPER
    assert "2412.07171" in ours.citation


@pytest.mark.parametrize("number", [4, 7, 8])
def test_the_published_averages_are_those_of_the_published_figures(number: int) -> None:
    for name, row in PAPER[number].items():
        figures = [v for v in row if v is not None]
        if number == 8:  # the eight tasks average to the needle average
            assert sum(figures) / 8 == pytest.approx(PAPER[4]["harpe"][-1], abs=0.02)
        elif len(figures) == 7:
            assert sum(figures[:6]) / 6 == pytest.approx(figures[6], abs=0.011), name


def test_published_figures_stand_beside_ours_in_the_papers_setting(comparison: Any, tmp_path: Path) -> None:
    names = ("none", "abf", "harpe", "harpe-uniform-ascending")
    page = write_report(
        comparison(tmp_path / "run", names, ruler=PAPER_LENGTHS, published="llama2-7b-128k")
    ).read_text()
    found = tables(page)
    rows = {
        number: next(rows for name, rows in found.items() if name.startswith(f"Table {number}:")) for number in PAPER
    }
    titles = {"abf": "ABF, top of the range", "harpe": "HARPE, peak-valley", "none": "untouched"}
    for number in (4, 5, 7, 8):
        for name in titles.keys() & PAPER[number].keys():
            row = next(row for row in rows[number] if row[0].startswith(titles[name]))
            for cell, figure in zip(row[1:], PAPER[number][name], strict=True):
                assert re.findall(r"paper ([\d.,]+)$", cell) == ([] if figure is None else [f"{figure:.2f}"])
    proof_pile, at_the_end, govreport = next(row for row in rows[3] if row[0].startswith("HARPE, peak-valley"))[1:]
    assert proof_pile.endswith("paper 3.02") and "paper" not in at_the_end and govreport.endswith("paper 3.54")
    choices = {row[0]: row[1] for row in rows[6]}
    assert choices["HARPE, uniform ascending"].endswith("paper 84.30")
    assert choices["peak-valley, stride 10k in the paper only"] == "not run paper 84.51"
    assert any(row[0].startswith("YaRN in the paper only") for row in rows[4])
    assert "2412.07171" in page


def test_a_published_mean_over_other_lengths_is_left_out(comparison: Any, tmp_path: Path) -> None:
    run = comparison(tmp_path / "run", ruler=PAPER_LENGTHS[:2], published="llama2-7b-128k")
    page = write_report(run).read_text()
    rows = next(rows for name, rows in tables(page).items() if name.startswith("Table 4"))
    harpe = next(row for row in rows if row[0].startswith("HARPE"))
    assert harpe[1].endswith("paper 97.03") and harpe[2].endswith("paper 96.88") and "paper" not in harpe[3]
    assert "A published mean over other lengths" in page


def test_published_figures_stand_nowhere_else(comparison: Any, tmp_path: Path) -> None:
    page = write_report(comparison(tmp_path / "run", ruler=PAPER_LENGTHS)).read_text()
    assert "paper 9" not in words(page) and "86.82" not in page


def test_unknown_published_figures_are_told(run: Path) -> None:
    edit(run / "plan.json", published="gpt-9")
    with pytest.raises(HarpeError, match="gpt-9.*llama2-7b-128k"):
        write_report(run)


def test_our_average_over_lengths_is_the_mean_of_perplexities_and_of_scores(comparison: Any, tmp_path: Path) -> None:
    run = comparison(tmp_path / "run", ruler=(2048, 4096))
    found = tables(write_report(run).read_text())
    measures = {m["id"]: m["values"]["harpe"]["value"] for m in read(run / "summary.json")["measures"]}
    expected = (math.exp(measures["curve-proof-pile-2048"]) + math.exp(measures["curve-proof-pile-4096"])) / 2
    row = next(
        row for row in next(rows for n, rows in found.items() if n.startswith("Table 3")) if row[0].startswith("HARPE")
    )
    assert row[1].startswith(f"{expected:.2f} no interval n = 3 × 10")
    mean = (measures["ruler-niah-2048"] + measures["ruler-niah-4096"]) / 2
    row = next(
        row for row in next(rows for n, rows in found.items() if n.startswith("Table 4")) if row[0].startswith("HARPE")
    )
    assert row[3].startswith(f"{mean:.1f}% no interval")


def test_a_measured_mean_brings_its_interval(comparison: Any, tmp_path: Path) -> None:
    run = comparison(tmp_path / "run", ruler=(2048, 4096))
    summary = read(run / "summary.json")
    mean = {
        **next(m for m in summary["measures"] if m["id"] == "ruler-niah-4096"),
        "id": "ruler-niah-mean",
        "length": None,
    }
    mean["values"] = {
        "harpe": {"value": 71.25, "low": 70.04, "high": 72.51, "seeds": 3, "documents": 800, "by_seed": []}
    }
    write_json(run / "summary.json", summary | {"measures": [*summary["measures"], mean]})
    rows = next(rows for n, rows in tables(write_report(run).read_text()).items() if n.startswith("Table 4"))
    assert next(row for row in rows if row[0].startswith("HARPE"))[3].endswith("71.2% 70.0–72.5% n = 3 × 800")


def test_what_was_not_measured_is_said_in_one_line(run: Path) -> None:
    text = words(write_report(run).read_text())
    for number in (3, 4, 5, 7, 8):
        assert re.search(rf"Table {number}, [^:]+: not run in this comparison\.", text)


def test_a_page_is_written_from_the_plan_alone(run: Path) -> None:
    for path in [
        *run.rglob("scores/*.json"),
        *run.rglob("log.jsonl"),
        *run.rglob("record.json"),
        *run.rglob("failed.json"),
    ]:
        path.unlink()
    (run / "summary.json").unlink()
    (run / "environment.json").unlink()
    page = write_report(run).read_text()
    assert page.count("not run in this comparison") >= 9 and "HARPE, peak-valley" in page
    assert (run / "report" / "tables.md").read_text().count("not run") >= 3
    assert len((run / "report" / "tables.csv").read_text().splitlines()) == 1


def test_a_failure_is_shown_with_its_reason_and_seed(run: Path) -> None:
    write_json(run / "harpe" / "seed-1" / "failed.json", {"reason": "Out of memory."})
    failed = tables(write_report(run).read_text())["Failed methods"]
    assert [row for row in failed if row[0].startswith("HARPE")] == [["HARPE, peak-valley", "1", "Out of memory."]]
    assert sum("training diverged" in row[2] for row in failed) == 3
    assert "Out of memory" in (run / "report" / "tables.md").read_text()


def test_with_fewer_than_three_seeds_the_page_says_documents_only(comparison: Any, tmp_path: Path) -> None:
    one = words(write_report(comparison(tmp_path / "one", seeds=(0,))).read_text())
    three = words(write_report(comparison(tmp_path / "three")).read_text())
    assert "Intervals cover documents only (one seed" in one and "seeds and documents" not in one
    assert "Intervals cover seeds and documents" in three and "documents only" not in three
    assert "draws from the 3 seeds" in three and "too narrow" in three  # of an earlier version, which drew them
    edit(tmp_path / "three" / "summary.json", seeds_spread="student")
    three = words(write_report(tmp_path / "three").read_text())
    assert "what other seeds than these 3 would add has Student's distribution" in three
    assert "draws from" not in three and "too narrow" not in three
    edit(tmp_path / "one" / "summary.json", interval="seeds and documents")
    with pytest.raises(HarpeError, match=r"summary\.json.*1 seeds"):
        write_report(tmp_path / "one")


def test_equal_budgets_and_equal_data_are_read_from_the_records(comparison: Any, tmp_path: Path) -> None:
    run = comparison(tmp_path / "run", ("none", "abf", "abf-staged", "harpe"))
    text = words(write_report(run).read_text())
    assert "The budgets are equal." in text and "their data's hashes agree" in text
    path = run / "abf-staged" / "seed-0" / "record.json"
    record = read(path)
    edit(path, tokens=131_072 + 8192)
    assert "8,192, not more than one batch of 8,192" in words(write_report(run).read_text())
    write_json(path.with_name("failed.json"), {"reason": "Out of memory."})  # what a failed run has spent is no budget
    assert "The budgets are equal." in words(write_report(run).read_text())
    path.with_name("failed.json").unlink()
    record["stages"][2]["data_hash"] = "f" * 64
    write_json(path, record | {"tokens": 131_072 + 8193})
    text = words(write_report(run).read_text())
    assert "MORE than one batch" in text and "The training data DIFFER between methods: seed 0 at 2,048 tokens" in text


def test_page_refers_to_nothing_outside_itself(run: Path) -> None:
    page = re.sub(r'href="data:image/svg\+xml;base64,[^"]*"', "", write_report(run).read_text())
    assert not re.search(
        r"https?:|@import|\burl\(|<link|<img|<iframe|\bsrc=|fetch\(|XMLHttp|import\(", page, re.IGNORECASE
    )
    targets = re.findall(r'href="([^"]*)"', page)
    assert targets and all(t.startswith("#") and f'id="{t[1:]}"' in page for t in targets)


def test_only_the_pages_own_script_may_run(run: Path) -> None:
    page = write_report(run).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_text_from_files_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    plan, summary = read(run / "plan.json"), read(run / "summary.json")
    plan["title"] = plan["model"]["name"] = plan["range"]["why"] = evil
    plan["reasons"], plan["corpus"]["description"], plan["evaluation"] = [evil], evil, {evil: evil}
    for method in plan["methods"]:
        method["title"] = method["explanation"] = method["source"] = evil
        method["options"] = {evil: evil}
        for stage in method["stages"]:
            stage["encoding"] = evil
    write_json(run / "plan.json", plan)
    for m in summary["measures"]:
        m["title"] = evil
    write_json(run / "summary.json", summary | {"reading": [evil]})
    edit(run / "environment.json", **{evil: evil})
    write_json(run / "longrope" / "seed-0" / "failed.json", {"reason": evil})
    page = write_report(run).read_text()
    assert page.count("<script") == 1 and "<img" not in page
    assert not re.search(r'(aria-label|title|data-[a-z]+)="[^"]*<', page)
    assert "<script" not in (run / "report" / "tables.md").read_text()


def test_two_writes_are_byte_identical(run: Path) -> None:
    names = ("index.html", "tables.md", "tables.csv")
    assert write_report(run) == run / "report" / "index.html"
    first = [(run / "report" / name).read_bytes() for name in names]
    write_report(run)
    assert [(run / "report" / name).read_bytes() for name in names] == first


def test_the_terminal_table_holds_the_chief_columns_and_cuts_no_number_at_80_columns(run: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(main_table(run))
    text = console.export_text()
    assert "…" not in text and "failed" in text and "seeds and documents" in " ".join(text.split())
    for m in read(run / "summary.json")["measures"]:
        if m["id"] in ("loss-short", "loss-long", "needles-mean-2048"):
            for value in m["values"].values():
                assert (f"{math.exp(value['value']):.2f}" if m["unit"] == "nats" else f"{value['value']:.1f}%") in text


def test_the_verb_report_writes_it_and_prints_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "HARPE" in out and "failed" in out and str(run / "report" / "index.html") in out.replace("\n", "")
    assert (run / "report" / "tables.csv").is_file()
