# SPDX-License-Identifier: Apache-2.0
"""Links between the project's documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("*.md", "docs/*.md", "training/**/*.md", "test/benchmark/**/*.md", "xmodal_seg/**/*.md")
DOCUMENTS = sorted({path for part in PARTS for path in ROOT.glob(part)})
LINK = re.compile(r"\]\(([^)]+)\)")


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_documents() -> None:
    assert {"README.md", "docs/architecture.md", "training/README.md"} <= {
        path.relative_to(ROOT).as_posix() for path in DOCUMENTS
    }
