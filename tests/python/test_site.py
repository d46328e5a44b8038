"""The documentation site (tools/build_site.py): where links lead, what is wrong, an entry for every public name."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = runpy.run_path(str(ROOT / "tools" / "build_site.py"))
API = ("functional", "modules", "models", "adapters", "diffusion", "data", "training", "parallel", "reference")
FILES = {
    "README.md": "# Start",
    "demo/README.md": "# Demo",
    "demo/curve.png": "",
    "csrc/gemm/README.md": "# Products",
    "csrc/gemm/gemm.h": "",
    "docs/guide.md": "# Guide",
    "docs/picture.png": "",
    "docs/site.css": "a {}",
    "docs/cuda/README.md": "# Overview",
    "pyproject.toml": '[project.urls]\nRepository = "https://host/us"\n',
    "mkdocs.yml": "nav:\n",
}
NAVIGATION = (
    "\nnav:\n  - index.md\n  - Use:\n      - The guide: guide.md\n      - cuda/index.md\n      - source/gemm.md\n"
)


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\n{NAVIGATION}      - demo.md\n\ntheme: y.md\n")
    return tmp_path


def rewritten(root: Path, source: str, text: str) -> str:
    (root / source).write_text(text)
    page, _, problems = SITE["rewrite"](root, source, SITE["find_pages"](root))
    assert not problems
    return page


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[a](docs/guide.md#part)", "[a](guide.md#part)"),
        ("README.md", "[a](docs/cuda/README.md)", "[a](cuda/index.md)"),
        ("README.md", "[a](demo/)", "[a](demo.md)"),
        ("docs/guide.md", "[`a` [1]](../README.md)", "[`a` [1]](index.md)"),
        ("docs/cuda/README.md", "[a](../../csrc/gemm/README.md)", "[a](../source/gemm.md)"),
        ("csrc/gemm/README.md", "[a](../../docs/cuda)", "[a](../cuda/index.md)"),
        ("csrc/gemm/README.md", "[a](gemm.h)", "[a](https://host/us/blob/main/csrc/gemm/gemm.h)"),
        ("docs/guide.md", "[a](../csrc/#x)", "[a](https://host/us/tree/main/csrc#x)"),
        ("docs/cuda/README.md", "![a](../picture.png)", "![a](../picture.png)"),
        ("README.md", "![a](docs/picture.png)", "![a](picture.png)"),
        ("README.md", "[![a](docs/picture.png)](docs/guide.md)", "[![a](picture.png)](guide.md)"),
        ("README.md", "two `[a](none)` spans ``[`](none)``", "two `[a](none)` spans ``[`](none)``"),
        ("README.md", "[a](https://x.org/y_(z)) [b](#part)", "[a](https://x.org/y_(z)) [b](#part)"),
        ("README.md", "x\n\n    [a](none)\n\nx", "x\n\n    [a](none)\n\nx"),
        (
            "README.md",
            "```python no-run\n[a](none)\n```\n[a](docs/guide.md)",
            "```python\n[a](none)\n```\n[a](guide.md)",
        ),
    ],
)
def test_links(root, source, link, expected):
    assert rewritten(root, source, link) == expected


def test_collects_pages_images_and_styles(root):
    (root / "README.md").write_text("![a](demo/curve.png)")
    out = root / "out"
    assert SITE["collect"](root, out) == []
    pages = {"index.md", "demo.md", "guide.md", "cuda/index.md", "source/gemm.md"}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == pages | {"demo/curve.png", "site.css"}


def test_says_what_is_wrong(root):
    (root / "README.md").write_text("[a](docs/none.md) ![b](none.png)")
    (root / "docs" / "new.md").write_text("# New")
    (root / "mkdocs.yml").write_text(f"{NAVIGATION}      - Gone: gone.md\n")
    assert SITE["collect"](root, root / "out") == [
        "README.md: there is no docs/none.md",
        "README.md: there is no none.png",
        "mkdocs.yml: nav has gone.md, which no file becomes",
        "mkdocs.yml: nav lacks demo.md (demo/README.md)",
        "mkdocs.yml: nav lacks new.md (docs/new.md)",
    ]


def test_formulas_become_mathml():
    def convert(tex: str, display: str) -> str:
        return f"<math {display}>{tex}</math>"

    page = r'<p><span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[x\]</div>'
    assert SITE["finish"](page, convert) == ("<p><math inline>a < b</math></p><math block>x</math>", [])


@pytest.mark.parametrize(
    "left", ["<p>so:\n- a</p>", "<p>```python no-run\nx</p>", "<p><b>a</b>\n| a | b |</p>", "<p># x</p>"]
)
def test_markdown_that_is_left_is_noticed(left):
    (problem,) = SITE["finish"](f"<p>x - y</p>\n{left}", str)[1]
    assert left in problem
    assert SITE["finish"]("<p>x - y</p>\n<pre>\n- a\n| b</pre><p>z\nz</p>", str)[1] == []


def test_links_of_the_repository_lead_somewhere():
    pages = SITE["find_pages"](ROOT)
    assert len(pages) > 30
    assert [problem for source in pages for problem in SITE["rewrite"](ROOT, source, pages)[2]] == []


@pytest.mark.parametrize("package", API)
def test_public_names_have_an_entry(package):
    """Functions and classes do; constants need none."""
    tree = ast.parse((ROOT / "python" / "frameattn" / package / "__init__.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    entries = {path.rpartition(".")[2] for path in re.findall(rf"^::: frameattn\.{package}\.([\w.]+)$", pages, re.M)}
    assert entries and {name for name in names if not name.isupper()} <= entries
