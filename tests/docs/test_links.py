"""The links of the pages: every target exists, and the index lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.test_commands import PAGES
from tests.docs.test_extend import blocks

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a Markdown page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_has_a_target(page):
    for path, anchor in LINK.findall((ROOT / page).read_text()):
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {path} does not exist"
        assert not anchor or anchor in anchors(target), f"{page}: {path} has no #{anchor}"


def test_the_index_lists_every_page():
    listed = {path for path, _ in LINK.findall((ROOT / "docs/README.md").read_text())}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= listed, sorted(pages - listed)


FOLDERS = ("conf", "data_pipeline", "eval", "finetune", "launch", "model", "pages", "pretrain")
FILE = re.compile(
    rf"`((?:{'|'.join(FOLDERS)}|tests|benchmarks)/[\w/]+\.(?:py|yaml|md|json|sbatch))[`:]"
)


@pytest.mark.parametrize("page", PAGES)
def test_files_named_on_a_page_exist(page):
    added = {block.path for block in blocks()} if page == "docs/extend.md" else set()
    for name in FILE.findall((ROOT / page).read_text()):
        assert name in added or (ROOT / name).exists(), f"{page}: {name} does not exist"


def test_files_named_in_code_exist():
    """Pages that code, configs and scripts refer to as `docs/NAME.md`."""
    suffixes = {".py", ".yaml", ".sbatch", ".j2", ".html"}
    files = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.suffix in suffixes]
    for file in files:
        for name in re.findall(r"\bdocs/\w+\.md", file.read_text()):
            assert (ROOT / name).exists(), f"{file.relative_to(ROOT)}: {name} does not exist"
