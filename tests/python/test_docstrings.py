"""What docstrings say is so: examples run and print what they show, and parameters that are documented exist."""

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

PACKAGE = Path(__file__).parents[2] / "python" / "frameattn"
SECTION = re.compile(r"^Args:\n((?:    .*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    ([\w*][\w*, ]*):", re.MULTILINE)  # of one or several names


def docstrings() -> Iterator[tuple[str, str, str, int]]:
    """Module, qualified name, docstring and line of everything that is documented. Nothing is imported for it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        yield from _of_node(module, "", ast.parse(path.read_text()))


def _of_node(module: str, name: str, node: ast.AST) -> Iterator[tuple[str, str, str, int]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
        yield module, name, text + "\n", node.body[0].lineno
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _of_node(module, f"{name}.{child.name}".lstrip("."), child)


DOCUMENTED = list(docstrings())


def ids(chosen: list[tuple[str, str, str, int]]) -> list[str]:
    return [f"{module}.{name}".rstrip(".") for module, name, _, _ in chosen]


def load(module: str, name: str) -> object:
    if module.startswith("frameattn.models."):
        pytest.importorskip("diffusers")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


WITH_EXAMPLES = [each for each in DOCUMENTED if ">>>" in each[2]]
WITH_ARGUMENTS = [each for each in DOCUMENTED if SECTION.search(each[2])]


@pytest.fixture
def one_process(tmp_path):
    """A process group, as torchrun gives one to what the examples of frameattn.parallel are a part of."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("module", "name", "text", "line"), WITH_EXAMPLES, ids=ids(WITH_EXAMPLES))
def test_examples(module, name, text, line, request):
    if "torch.distributed" in text:
        request.getfixturevalue("one_process")
    if "diffusers" in text:
        pytest.importorskip("diffusers")
    names = {name.rpartition(".")[2]: load(module, name)}  # and no more: what is pasted from the page runs
    test = doctest.DocTestParser().get_doctest(text, names, f"{module}.{name}", module, line - 1)
    printed: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert result.attempted > 0 and result.failed == 0, "".join(printed)


def undocumented_names(text: str, parameters: list[str]) -> list[str]:
    """Names in the section Args that are none of parameters."""
    documented = [name.strip(" *") for names in ENTRY.findall(SECTION.search(text)[1]) for name in names.split(",")]
    assert documented
    return [name for name in documented if name not in parameters]


@pytest.mark.parametrize(("module", "name", "text", "line"), WITH_ARGUMENTS, ids=ids(WITH_ARGUMENTS))
def test_documented_parameters_exist(module, name, text, line):
    assert undocumented_names(text, list(inspect.signature(load(module, name)).parameters)) == []


def test_a_wrong_parameter_is_noticed():
    text = "A map.\n\nArgs:\n    x, y: [N, D], also\n        z: of them.\n    *rest: more.\n\nReturns:\n    u: all.\n"
    assert undocumented_names(text, ["x", "y", "rest"]) == []
    assert undocumented_names(text, ["x"]) == ["y", "rest"]
