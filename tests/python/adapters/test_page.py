"""docs/adapters.md: its table is that of supported(), and its examples run."""

import re
from pathlib import Path

import pytest

from frameattn.adapters.__main__ import renewed, table
from frameattn.adapters.registry import _ADAPTERS, supported

PAGE = Path(__file__).parents[3] / "docs" / "adapters.md"


def test_table_is_that_of_the_package():
    page = PAGE.read_text()
    assert renewed(page) == page, "run: python -m frameattn.adapters docs/adapters.md"


def test_table_names_every_model():
    for support in supported():
        assert f"`{support.model.removeprefix('diffusers.')}`" in table() and support.notes in table()


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no <!-- supported:begin --> with <!-- supported:end --> behind it"):
        renewed("text")


@pytest.fixture
def registry():
    before = list(_ADAPTERS)
    yield
    _ADAPTERS[:] = before


def test_examples_run(registry):
    """Every block of Python, in the order of the page, but for those that need a checkpoint."""
    blocks = re.findall(r"^```python([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert {kind for kind, _ in blocks} == {"", " no-run"}
    namespace = {"__name__": "example"}
    for kind, code in blocks:
        program = compile(code, str(PAGE), "exec")
        if not kind:
            exec(program, namespace)
    assert any(support.model == "example.Transformer" for support in supported())
