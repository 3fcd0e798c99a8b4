"""For the site: files outside docs/ that pages link to become pages of it, under names of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "about.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES["yolokd/demo/assets/NOTICE.md"] = "notice.md"
NOTEBOOK = "yolokd.ipynb"  # in docs/: a page of its text and code; the file itself can be downloaded there
LISTINGS = {"cfg/default.yaml": "default-recipe.md", "CITATION.cff": "citation-file.md"}  # shown as they are


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        text = re.sub(r"^\[!\[.*\n", "", text, flags=re.M)  # badges, which are pictures of other servers
        files.append(File.generated(config, page, content=text))
    for source, page in LISTINGS.items():
        text = f"# {source}\n\n```yaml\n{(ROOT / source).read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    files.append(File.generated(config, "notebook.md", content=notebook()))
    return files


def notebook() -> str:
    """The notebook's cells as a page."""
    cells = json.loads((ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    text = ["".join(cell["source"]) for cell in cells]
    parts = [f"```python\n{t}\n```" if c["cell_type"] == "code" else t for t, c in zip(text, cells, strict=True)]
    parts.insert(1, f"This page shows the notebook [{NOTEBOOK}]({NOTEBOOK}), which Jupyter opens.")
    return "\n\n".join(parts) + "\n"


def reference() -> str:
    """The Python API and the methods, from their docstrings."""
    api = ["distill.training.train", "checks.check.check", "studies.runner.study", "fitting.fit.fit"]
    api += ["onnx.export.export", "onnx.bundle.bundle", "latency.bench.bench"]
    methods = sorted(f.stem for f in (ROOT / "yolokd/methods").glob("[a-z]*.py"))
    parts = ["# Reference", "## Functions", *(f"::: yolokd.{name}" for name in api)]
    parts += ["## Methods", *(f"### {name}\n\n::: yolokd.methods.{name}" for name in methods)]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at those pages; those inside the checkout's own files lead from page to page too."""
    for source, target in {**PAGES, **LISTINGS}.items():
        for link in (f"../{source}", source):
            markdown = markdown.replace(f"]({link}", f"]({target}")
    if page.file.src_uri != "notebook.md":
        markdown = markdown.replace(f"]({NOTEBOOK}", "](notebook.md")
    return markdown
