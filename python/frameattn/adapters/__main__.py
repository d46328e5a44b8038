"""Prints the table of the models that apply() knows, or renews it in a page that has its marks.

python -m frameattn.adapters
python -m frameattn.adapters docs/adapters.md
"""

import sys
from pathlib import Path

from frameattn._marks import put_between
from frameattn.adapters import supported

BEGIN, END = "<!-- supported:begin -->", "<!-- supported:end -->"


def table() -> str:
    """Markdown: a row for each model that can be swapped, and one for all that stay dense for the same reason."""
    rows = ["| swapped | |", "|---|---|"]
    rows += [f"| {_name(s.model)} | {s.notes} |" for s in supported() if s.verdict == "swap"]
    declined: dict[str, list[str]] = {}
    for support in supported():
        if support.verdict == "decline":
            declined.setdefault(support.notes, []).append(_name(support.model))
    rows += ["", "| stays dense | because it |", "|---|---|"]
    rows += [
        f"| {', '.join(names)} | {why} |" for why, names in sorted(declined.items(), key=lambda item: len(item[1]))
    ]
    return "\n".join(rows)


def renewed(page: str) -> str:
    """The page with the table of today between its marks."""
    return put_between(page, BEGIN, END, table())


def _name(model: str) -> str:
    return f"`{model.removeprefix('diffusers.')}`"


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(table())
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text()))
