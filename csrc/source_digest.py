"""A digest of sources, by which a build says what it was made of: python csrc/source_digest.py csrc tools/emulator

It is made of the names that git gives to the contents, since a copied tree may have no .git.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = {".cpp", ".cu", ".cuh", ".h", ".py", ".txt"}


def source_hashes(root: Path, tops: Sequence[str]) -> dict[str, str]:
    """Path -> git's name, of the files and of all in the folders."""
    hashes = {}
    for top in tops:
        files = [root / top] if (root / top).is_file() else sorted((root / top).rglob("*"))
        for file in files:
            if file.is_file() and file.suffix in SUFFIXES:
                content = file.read_bytes()
                name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                hashes[file.relative_to(root).as_posix()] = name
    return hashes


def source_digest(root: Path, tops: Sequence[str]) -> str:
    lines = [f"{name} {path}\n" for path, name in sorted(source_hashes(root, tops).items())]
    return hashlib.sha1("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    print(source_digest(Path(__file__).resolve().parents[1], sys.argv[1:]))
