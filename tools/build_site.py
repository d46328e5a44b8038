"""Builds the documentation site into build/site: make docs. Needs the extra `docs`, but no network and no torch.

Pages of the site are files that are read on GitHub, too: READMEs, CONTRIBUTING.md, CHANGELOG.md and docs/. They are
collected in build/site-pages, where links between them lead to pages and all others to the repository. Zensical's
strict build fails on links, anchors and references to objects that do not exist. What it passes is checked here: links
that leave the pages, images, the navigation, and Markdown that GitHub reads in another way.
"""

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = Path("build/site-pages"), Path("build/site")
NAMED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "demo/README.md": "demo.md",
    "examples/README.md": "examples.md",
    "findings/README.md": "findings.md",
    "tools/emulator/README.md": "emulator.md",
}
# What is no link comes first: fenced code, lines that are indented as code is, code in a line.
LINK = re.compile(
    r"^(?P<fence>```+).*?^(?P=fence)$|^ {4}[^\n]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
RAW_MARKDOWN = re.compile(r"<p>(?:(?:(?!</p>).)*\n)?(?:```|\||[-*#] ).*", re.DOTALL)


def repository(root: Path) -> str:
    """Its address, which stands in pyproject.toml alone."""
    return re.search(r'^Repository = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)[1]


def place_of(file: str) -> str:
    """Where a file of the repository is on the site, as a page or an image."""
    if family := re.fullmatch(r"csrc/(\w+)/README\.md", file):
        return f"source/{family[1]}.md"
    return NAMED.get(file) or re.sub(r"(^|/)README\.md$", r"\1index.md", file.removeprefix("docs/"))


def find_pages(root: Path) -> dict[str, str]:
    """Files that are pages, and their places on the site."""
    paths = [*map(root.joinpath, NAMED), *root.glob("csrc/*/README.md"), *root.glob("docs/**/*.md")]
    files = [path.relative_to(root).as_posix() for path in paths if path.exists()]
    return {file: place_of(file) for file in files}


def rewrite(root: Path, source: str, pages: dict[str, str]) -> tuple[str, list[str], list[str]]:
    """The text of a page as it is on the site, the images that it shows, and what is wrong with its links."""
    images, problems = [], []

    def replacement(match: re.Match[str]) -> str:
        if match["fence"]:  # words behind the language are for tests
            return re.sub(r"^(```+ *\S*).*", r"\1", match[0], count=1)
        target = match["target"]
        if not target:
            return match[0]
        text = LINK.sub(replacement, match["text"])  # an image may be a link
        if not re.match(r"[a-z]+:|#", target):
            path, mark, anchor = target.partition("#")
            file = os.path.normpath(os.path.join(os.path.dirname(source), path))
            page = file if file in pages else f"{file}/README.md"
            if not (root / file).exists():
                problems.append(f"{source}: there is no {target}")
            elif match["image"]:
                images.append(file)
                target = os.path.relpath(place_of(file), os.path.dirname(pages[source]))
            elif page in pages:
                target = os.path.relpath(pages[page], os.path.dirname(pages[source])) + mark + anchor
            else:
                kind = "tree" if (root / file).is_dir() else "blob"
                target = f"{repository(root)}/{kind}/main/{file}{mark}{anchor}"
        return f"{match['image']}[{text}]({target})"

    return LINK.sub(replacement, (root / source).read_text(encoding="utf-8")), images, problems


def collect(root: Path, to: Path) -> list[str]:
    """Writes all pages, images and styles, and says what is wrong with links and navigation."""
    pages, problems = find_pages(root), []
    copies = {path.relative_to(root).as_posix() for path in root.glob("docs/*.css")}
    for source, page in pages.items():
        text, images, wrong = rewrite(root, source, pages)
        copies.update(images)
        problems += wrong
        (to / page).parent.mkdir(parents=True, exist_ok=True)
        (to / page).write_text(text, encoding="utf-8")
    for file in copies:
        (to / place_of(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, to / place_of(file))
    navigation = (root / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    listed = re.findall(r"[\w./-]+\.md$", navigation, re.MULTILINE)
    problems += [f"mkdocs.yml: nav has {page}, which no file becomes" for page in listed if page not in pages.values()]
    problems += [f"mkdocs.yml: nav lacks {page} ({source})" for source, page in pages.items() if page not in listed]
    return problems


def finish(page: str, convert: Callable[..., str]) -> tuple[str, list[str]]:
    """A built page with its formulas as MathML, which browsers show without a script; Markdown that is left in it."""
    raw = RAW_MARKDOWN.search(page)
    problems = [f"Markdown was not understood (an empty line is missing?): {raw[0][:300]}"] if raw else []

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(formula, page), problems


def main() -> None:
    from latex2mathml.converter import convert

    os.chdir(ROOT)
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    if problems := collect(ROOT, PAGES):
        sys.exit("\n".join(problems))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    environment = {**os.environ, "REPOSITORY": repository(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:  # it prints in colours, and a traceback of its own behind what is wrong
        sys.exit(re.sub(r"\x1b\[[\d;]*m", "", done.stdout).partition("Traceback")[0])
    for path in SITE.rglob("*.html"):
        page, wrong = finish(path.read_text(encoding="utf-8"), convert)
        path.write_text(page, encoding="utf-8")
        problems += [f"{path}: {problem}" for problem in wrong]
    if problems:
        sys.exit("\n".join(problems))
    print(f"The site is in {SITE}: {len(list(SITE.rglob('index.html')))} pages.")


if __name__ == "__main__":
    main()
