"""docs/adapters.md: its table is that of supported(), and its examples run, as those of docs/fine_tune.md."""

import re
from pathlib import Path

import pytest

from frameattn.adapters.__main__ import renewed, table
from frameattn.adapters.registry import _ADAPTERS, supported

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "adapters.md"


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


def run(page):
    """Every block of Python, in the order of the page, but for those that need a checkpoint."""
    blocks = re.findall(r"^```python([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks and {kind for kind, _ in blocks} <= {"", " no-run"}
    namespace = {"__name__": "example"}
    for kind, code in blocks:
        program = compile(code, str(page), "exec")
        if not kind:
            exec(program, namespace)


def test_fine_tuning_runs():
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    run(DOCS / "fine_tune.md")


def test_examples_run(registry):
    run(PAGE)
    assert any(support.model == "example.Transformer" for support in supported())
