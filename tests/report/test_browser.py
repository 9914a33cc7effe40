"""The page in a real browser: it draws, logs no error, and does not scroll sideways on a phone."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from harpe.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files"),
)
WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="frame" src="{url}" style="width:{width}px;height:{height}px;border:0"></iframe>
<p id="measured"></p>
<script>
document.getElementById("frame").onload = (event) => {{
  const root = event.target.contentDocument.documentElement;
  const widths = [...root.querySelectorAll("svg.figure")]
    .map((figure) => Math.round(figure.getBoundingClientRect().width));
  document.getElementById("measured").textContent =
    `client=${{root.clientWidth}} scroll=${{root.scrollWidth}} narrowest=${{Math.min(...widths)}}`;
}};
</script>"""

pytestmark = pytest.mark.slow


@pytest.fixture
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    builder = runpy.run_path(str(Path(__file__).with_name("test_page.py")))
    return write_report(builder["make_run"](tmp_path / "run"))


def run_browser(browser: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)


def wrapped(tmp_path: Path, page: Path, width: int, height: int) -> str:
    """A page with the report in a frame of `width` pixels: a window itself cannot be that narrow."""
    path = tmp_path / f"frame-{width}.html"
    path.write_text(WRAPPER.format(url=page.as_uri(), width=width, height=height))
    return path.as_uri()


def colours(path: Path, width: int) -> int:
    """Number of different colours in the left `width` pixels of a PNG."""
    pixels = np.asarray(Image.open(path).convert("RGB"))[:, :width].astype(np.int64)
    return len(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1])))


@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_drawn(browser: str, page: Path, tmp_path: Path, width: int) -> None:
    height = 6000 if width > 600 else 10_000
    url = page.as_uri() if width > 600 else wrapped(tmp_path, page, width, height)
    shot = tmp_path / "page.png"
    run_browser(browser, tmp_path / "profile", f"--screenshot={shot}", f"--window-size={max(width, 500)},{height}", url)
    assert shot.is_file()
    assert colours(shot, width) > 200


def test_dark_differs_from_light(browser: str, page: Path, tmp_path: Path) -> None:
    means = []
    for scheme in (0, 1):  # blink: 0 dark, 1 light
        shot = tmp_path / f"{scheme}.png"
        setting = f"--blink-settings=preferredColorScheme={scheme}"
        run_browser(
            browser,
            tmp_path / f"profile-{scheme}",
            setting,
            f"--screenshot={shot}",
            "--window-size=900,900",
            page.as_uri(),
        )
        means.append(float(np.asarray(Image.open(shot).convert("RGB")).mean() / 255))
    assert means[0] < 0.35 and means[1] > 0.8


def test_page_logs_no_error(browser: str, page: Path, tmp_path: Path) -> None:
    done = run_browser(browser, tmp_path / "profile", "--dump-dom", "--enable-logging=stderr", "--v=0", page.as_uri())
    assert "Reading the result" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_page_does_not_scroll_sideways(browser: str, page: Path, tmp_path: Path, width: int) -> None:
    url = wrapped(tmp_path, page, width, 800)
    dom = run_browser(
        browser, tmp_path / "profile", "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=5000", url
    ).stdout
    found = re.search(r"client=(\d+) scroll=(\d+) narrowest=(\d+)", dom)
    assert found, dom[-2000:]
    client, scroll, narrowest = map(int, found.groups())
    assert client == width and scroll == client
    assert narrowest > 200


DRIVER = """<!doctype html><body style="margin:0">
<iframe id="frame" src="{url}" style="width:{width}px;height:900px;border:0" {sandbox}></iframe>
<script type="application/json" id="measured"></script>
<script>
document.getElementById("frame").onload = (event) => {{
  const page = event.target.contentDocument;
  const found = {{}};
  {steps}
  document.getElementById("measured").textContent = JSON.stringify(found);
}};
</script>"""
STEPS = """
  const table = page.querySelector("table.sortable");
  const column = (index) => [...table.tBodies[0].rows].map((row) =>
    row.cells[index].querySelector("b, .none")?.textContent);
  const press = (index) => table.tHead.rows[0].cells[index].querySelector("button").click();
  const state = (index) => table.tHead.rows[0].cells[index].getAttribute("aria-sort");
  found.plan = column(2);
  press(2);
  found.up = [state(2), column(2)];
  press(2);
  found.down = [state(2), column(2)];
  press(7);
  found.best = [state(2), state(7), column(7)];
  press(0);
  found.again = column(2);
  const figure = page.querySelector("#needles svg.figure");
  const tip = page.querySelector(".tooltip");
  const key = (name) => figure.dispatchEvent(new page.defaultView.KeyboardEvent("keydown", {{ key: name }}));
  found.focusable = figure.getAttribute("tabindex");
  key("ArrowRight");
  key("ArrowRight");
  found.second = [tip.hidden, tip.textContent];
  key("Escape");
  found.closed = tip.hidden;
  const chips = page.querySelectorAll("#training .chips button");
  chips[1].click();
  const lines = [...page.querySelectorAll("#training .series")];
  found.picked = [chips[1].getAttribute("aria-pressed"), lines.map((line) => line.classList.contains("dim"))];
  chips[1].click();
  found.released = lines.some((line) => line.classList.contains("dim"));
"""


def driven(
    browser: str, tmp_path: Path, page: Path, steps: str, width: int = 1280, sandbox: str = ""
) -> dict[str, Any]:
    """What `steps` find in the page, run from a page around it."""
    path = tmp_path / f"driver-{width}.html"
    path.write_text(
        DRIVER.format(
            url=page.as_uri(), width=width, steps=steps.replace("{{", "{").replace("}}", "}"), sandbox=sandbox
        )
    )
    arguments = ("--dump-dom", "--window-size=1400,900", "--virtual-time-budget=8000", path.as_uri())
    dom = run_browser(browser, tmp_path / "profile", *arguments).stdout
    found = re.search(r'id="measured">(.+?)</script>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return dict(json.loads(found[1]))


@pytest.fixture
def compared(small_comparison: Path) -> Path:
    return write_report(small_comparison)


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.rstrip("%")) for cell in cells if cell != "failed"]


def test_tables_sort_figures_tell_values_by_keyboard_and_methods_are_picked_out(
    browser: str, compared: Path, tmp_path: Path
) -> None:
    found = driven(browser, tmp_path, compared, STEPS)
    assert found["plan"][-1] == "failed" and numbers(found["plan"]) != sorted(numbers(found["plan"]))
    assert found["up"][0] == "ascending" and numbers(found["up"][1]) == sorted(numbers(found["plan"]))
    assert found["down"][0] == "descending" and numbers(found["down"][1]) == sorted(
        numbers(found["plan"]), reverse=True
    )
    assert found["up"][1][-1] == found["down"][1][-1] == "failed"  # what has no value stays last
    assert found["best"][:2] == [None, "descending"] and numbers(found["best"][2]) == sorted(
        numbers(found["best"][2]), reverse=True
    )
    assert found["again"] == found["plan"]
    assert found["focusable"] == "0" and found["closed"] is True
    assert found["second"][0] is False and found["second"][1].startswith("256 tokens, depth 25 %")
    assert (
        found["picked"] == ["true", [True, False, *[True] * (len(found["picked"][1]) - 2)]]
        and found["released"] is False
    )


def test_a_comparison_logs_no_error(browser: str, compared: Path, tmp_path: Path) -> None:
    done = run_browser(
        browser, tmp_path / "profile", "--dump-dom", "--enable-logging=stderr", "--v=0", compared.as_uri()
    )
    assert 'class="sort"' in done.stdout  # the script has run: the page's policy holds its hash
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_comparison_without_scripts_has_values_and_tooltips(browser: str, compared: Path, tmp_path: Path) -> None:
    steps = """
      found.rows = page.querySelectorAll("table.sortable tbody tr").length;
      found.buttons = page.querySelectorAll(".sort").length;
      found.titles = page.querySelectorAll("svg .tip title").length;
      found.chips = page.querySelector(".chips").offsetHeight;
    """
    found = driven(browser, tmp_path, compared, steps, sandbox='sandbox="allow-same-origin"')
    assert found["rows"] > 20 and found["titles"] > 100 and found["buttons"] == found["chips"] == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison_does_not_scroll_sideways(
    browser: str, comparison: Any, all_methods: tuple[str, ...], tmp_path: Path, width: int
) -> None:
    page = write_report(comparison(tmp_path / "run", all_methods, ruler=(512, 2048)))
    steps = """
      const root = page.documentElement;
      for (const part of page.querySelectorAll("details")) part.open = true;
      found.client = root.clientWidth;
      found.scroll = root.scrollWidth;
      found.figures = Math.min(
        ...[...page.querySelectorAll(".maps svg.figure")].map((f) => f.getBoundingClientRect().width));
    """
    found = driven(browser, tmp_path, page, steps, width)
    assert found["client"] == found["scroll"] == width
    assert found["figures"] > 120


def test_a_comparison_follows_light_and_dark(browser: str, compared: Path, tmp_path: Path) -> None:
    test_dark_differs_from_light(browser, compared, tmp_path)


SAVED = """
  const saved = [];
  const view = event.target.contentWindow;
  view.HTMLAnchorElement.prototype.click = function () {{ saved.push([this.download, this.href]); }};
  const rows = [...page.querySelectorAll("p.save")];
  found.sections = [...new Set(rows.map((row) => row.closest("section").id))];
  for (const row of rows) for (const each of row.querySelectorAll("button")) each.click();
  setTimeout(() => {{
    found.saved = saved;
    document.getElementById("measured").textContent = JSON.stringify(found);
  }}, 6000);
"""


def test_figures_are_saved_as_svg_and_png_for_slides(browser: str, compared: Path, tmp_path: Path) -> None:
    """Drawings in their own size with the light style sheet inside, and the browser's picture of each at twice it."""
    found = driven(browser, tmp_path, compared, SAVED)
    assert {"needles", "training"} <= set(found["sections"])
    files = dict(found["saved"])
    assert len(files) == len(found["saved"]) >= 4
    for name, address in files.items():
        kind, content = address.split(",", 1)
        if name.endswith(".svg"):
            drawing = ElementTree.fromstring(unquote(content))
            assert kind.startswith("data:image/svg+xml") and drawing.tag == "{http://www.w3.org/2000/svg}svg"
            assert "@media" not in content and len(drawing) > 3
        else:
            assert kind == "data:image/png;base64" and name.endswith(".png")
            (tmp_path / name).write_bytes(b64decode(content))
            picture = Image.open(tmp_path / name)
            assert picture.width >= 500 and colours(tmp_path / name, picture.width) > 20
