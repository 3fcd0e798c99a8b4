"""The README for the package index, which knows no files of the checkout; everything else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
SITE = "https://github.com/yolokd/yolokd"


def readme() -> str:
    """README.md with its links into the checkout pointed at this version's files on GitHub."""
    version = re.findall(r'"(.+)"', (ROOT / "deploy/yolokd_edge/version.py").read_text(encoding="utf-8"))[-1]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\])\((?!https?:)", rf"\1({SITE}/raw/v{version}/", text)
    text = re.sub(r"\]\(#", "](README.md#", text)
    return re.sub(r"\]\((?!https?:)", f"]({SITE}/blob/v{version}/", text)


setup(long_description=readme(), long_description_content_type="text/markdown")
