"""The table of differences is whole, and the page made of it is up to date."""

from pathlib import Path

import pytest

from proxy.engine.choice import ENGINES
from proxy.engine.differences import DIFFERENCES, markdown

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_engine_of_the_kind_has_its_word_and_they_differ(name):
    difference = DIFFERENCES[name]
    assert set(difference.does) == {engine.name for engine in ENGINES if engine.kind == difference.kind}
    assert len(set(difference.does.values())) > 1
    assert difference.why.endswith(".")


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "reference" / "engines.md").read_text()
    assert page == markdown(), "run: qproxy schema --engines > docs/reference/engines.md"
