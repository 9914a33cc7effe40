"""The page in a real browser: it draws, logs no error, and does not scroll sideways on a phone."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harpe.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files"),
)
WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="frame" src="{url}" style="width:{width}px;height:{height}px;border:0"></iframe>
<p id="measured"></p>
<script>
document.getElementById("frame").onload = (event) => {{
  const root = event.target.contentDocument.documentElement;
  const widths = [...root.querySelectorAll("svg.figure")].map((figure) => Math.round(figure.getBoundingClientRect().width));
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
        run_browser(browser, tmp_path / f"profile-{scheme}", setting, f"--screenshot={shot}", "--window-size=900,900", page.as_uri())
        means.append(float(np.asarray(Image.open(shot).convert("RGB")).mean() / 255))
    assert means[0] < 0.35 and means[1] > 0.8


def test_page_logs_no_error(browser: str, page: Path, tmp_path: Path) -> None:
    done = run_browser(browser, tmp_path / "profile", "--dump-dom", "--enable-logging=stderr", "--v=0", page.as_uri())
    assert "Reading the result" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_page_does_not_scroll_sideways(browser: str, page: Path, tmp_path: Path, width: int) -> None:
    url = wrapped(tmp_path, page, width, 800)
    dom = run_browser(browser, tmp_path / "profile", "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=5000", url).stdout
    found = re.search(r"client=(\d+) scroll=(\d+) narrowest=(\d+)", dom)
    assert found, dom[-2000:]
    client, scroll, narrowest = map(int, found.groups())
    assert client == width and scroll == client
    assert narrowest > 200
