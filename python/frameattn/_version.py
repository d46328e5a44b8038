"""Which version this is."""

from importlib import metadata
from pathlib import Path


def find_version() -> str:
    """Of the installed package; of the source folder, if nothing is installed."""
    try:
        return metadata.version("frameattn")
    except metadata.PackageNotFoundError:
        path = Path(__file__).parents[2] / "VERSION"
        return path.read_text().strip() if path.is_file() else "unknown"
