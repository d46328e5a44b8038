"""The videos below a folder, through symbolic links too."""

import os
import warnings
from pathlib import Path

SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")


def find_videos(folder: Path) -> list[Path]:
    """All videos below folder by their suffix, in the order of their names; hidden files and folders are left out.

    Links to folders are followed after all that is no link, so that no folder is walked twice and none for ever. One
    warning names links that lead nowhere, back, or to a folder that was walked before, and folders that do not open.
    """
    videos: list[Path] = []
    problems: list[str] = []
    walked: set[str] = set()
    links = [str(folder)]
    for top in links:  # grows meanwhile
        if walked and _leads_back(top):
            problems.append(f"{top} leads back to {os.path.realpath(top)}")
            continue
        for place, folders, files in os.walk(top, onerror=lambda error: problems.append(str(error))):
            real = os.path.realpath(place)
            if real in walked:
                problems.append(f"{top} leads to {real}, which is looked into already")
                folders.clear()
                continue
            walked.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [link for name in folders if os.path.islink(link := os.path.join(place, name))]
            for path in (Path(place, name) for name in files if not name.startswith(".")):
                if path.is_symlink() and not path.exists():
                    problems.append(f"{path} leads nowhere")
                elif path.suffix.lower() in SUFFIXES and path.is_file():
                    videos.append(path)
    if problems:
        warnings.warn(f"{folder}: not everything is looked into: {'; '.join(problems)}", stacklevel=2)
    return sorted(videos)


def _leads_back(link: str) -> bool:
    """Whether link leads to a folder that it is in."""
    real, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([real, place]) == real
