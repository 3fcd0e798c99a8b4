"""The page as Chromium shows it, in light and dark and on a phone (needs the extra `browser`)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import runs

from yolokd.reports.after import after

absent = not importlib.util.find_spec("PyQt6") or not importlib.util.find_spec("PyQt6.QtWebEngineWidgets")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(absent, reason="the extra `browser` is not installed")]

# What a browser alone knows: what it complains of, which pictures it could show, and whether all text can be read.
LOOK = """
(() => {
  const parts = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => {
    const [r, g, b] = parts(c).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor, p = parts(c);
      if (p.length < 4 || p[3] > 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e);
    const pair = [light(e instanceof SVGElement ? style.fill : style.color), light(behind(e))].sort((a, b) => a - b);
    if ((pair[1] + 0.05) / (pair[0] + 0.05) < 4.5) faint.push(e.textContent.trim().slice(0, 40));
  }
  const images = [...document.images];
  return JSON.stringify({
    texts: document.body.innerText.length, faint, images: images.length,
    broken: images.filter((i) => !i.complete || !i.naturalWidth).length,
    wide: document.documentElement.scrollWidth - innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    requests: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length,
  });
})()
"""
BROWSER = """
import json, os, sys
file, width, scheme, script = sys.argv[1:]
dark = scheme == "dark"
os.environ.update(QT_QPA_PLATFORM="offscreen", QTWEBENGINE_DISABLE_SANDBOX="1", QTWEBENGINE_CHROMIUM_FLAGS=
    f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={0 if dark else 1}")
from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication
app, said = QApplication(sys.argv[:1]), []
class Page(QWebEnginePage):
    def javaScriptConsoleMessage(self, level, message, line, source):
        said.append(message)
view = QWebEngineView()
page = Page(view)
view.setPage(page)
view.resize(int(width), 900)
view.show()
def seen(found):
    print("SEEN" + json.dumps({**json.loads(found), "said": said}))
    app.quit()
view.loadFinished.connect(lambda ok: QTimer.singleShot(500, lambda: page.runJavaScript(script, seen)))
view.load(QUrl.fromLocalFile(file))
QTimer.singleShot(120_000, app.quit)
app.exec()
"""


def seen(file: Path, width: int, scheme: str) -> dict:
    """What Chromium finds on a page of this width in pixels."""
    command = [sys.executable, "-c", BROWSER, str(file), str(width), scheme, LOOK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("SEEN"))


@pytest.fixture(scope="module")
def page(tmp_path_factory, scenes) -> Path:
    folder = runs.demo(tmp_path_factory.mktemp("browser") / "demo", scenes)
    assert after(folder) is not None
    return folder / "report.html"


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (390, "light")])
def test_chromium_shows_all_of_a_page_and_complains_of_nothing(page, width, scheme):
    found = seen(page, width, scheme)
    assert found["dark"] == (scheme == "dark") and found["texts"] > 500 and found["images"] > 10
    assert not found["said"] and not found["broken"] and not found["requests"], found
    assert not found["faint"], found["faint"]
    assert found["wide"] <= 0, "the page itself does not scroll sideways"


def test_what_is_wrong_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<body style='width:2000px'><p style='color:#ccc'>faint</p><img src='x.png'><script>nothing()</script>"
    )
    found = seen(page, 390, "light")
    assert found["faint"] == ["faint"] and found["broken"] == 1 and found["wide"] > 0 and found["said"]
