"""For the site: files outside docs/ that pages link to become pages of it, under names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "about.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES["yolokd/demo/assets/NOTICE.md"] = "notice.md"
LISTINGS = {"cfg/default.yaml": "default-recipe.md", "CITATION.cff": "citation-file.md"}  # shown as they are


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for source, page in LISTINGS.items():
        text = f"# {source}\n\n```yaml\n{(ROOT / source).read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def reference() -> str:
    """The Python API and the methods, from their docstrings."""
    api = ["distill.training.train", "checks.check.check", "studies.runner.study", "onnx.export.export"]
    api += ["onnx.bundle.bundle", "latency.bench.bench"]
    methods = sorted(f.stem for f in (ROOT / "yolokd/methods").glob("[a-z]*.py"))
    parts = ["# Reference", "## Functions", *(f"::: yolokd.{name}" for name in api)]
    parts += ["## Methods", *(f"### {name}\n\n::: yolokd.methods.{name}" for name in methods)]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at those pages; those inside the checkout's own files lead from page to page too."""
    for source, target in {**PAGES, **LISTINGS}.items():
        for link in (f"../{source}", source):
            markdown = markdown.replace(f"]({link}", f"]({target}")
    return markdown
