"""Clips from a folder of video files, or one folder for each class of them.

Creating the data set reads the header of every file; clips are decoded when they are drawn. A draw depends on the
generator alone, also where files turn out to be broken, so that all worker processes agree.
"""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from frameattn.data.video_io import UnreadableVideo, count_frames, read_video

SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
TRIES = 100  # draws in a row that may hit broken files


@dataclass(frozen=True)
class Video:
    """A readable file, the number of its frames and the label of its class (0 without classes)."""

    path: Path
    frames: int
    label: int


class VideoFolder:
    """Clips [T, 3, size, size] in -1..1 from the videos of a folder and its sub-folders.

    A clip is a random stretch of a random video: every ``frame_interval``-th frame, the short side scaled to size, the
    square in the middle. Files that cannot be read or are too short are skipped and named in a warning, once a process.

    Args:
        folder: where the videos are; hidden files are left out.
        size: side of a frame.
        frame_interval: 1 takes every frame.
        classes: the sub-folders are classes, labelled 0, 1, ... in the order of their names (``class_names``).
        flip: mirrors half of the clips.

    Raises:
        ValueError: an argument is out of its range, there is no readable video, or with classes one outside of them.
        MissingExtra: PyAV is not installed.
    """

    channels = 3

    def __init__(
        self,
        folder: str | PathLike,
        size: int = 256,
        frame_interval: int = 3,
        classes: bool = False,
        flip: bool = False,
    ):
        for name, value in (("size", size), ("frame_interval", frame_interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.folder = Path(folder)
        self.size = size
        self.frame_interval = frame_interval
        self.flip = flip
        self._warned: set[Path] = set()
        paths = find_videos(self.folder)
        self.class_names = _class_names(self.folder, paths) if classes else []
        self.num_classes = len(self.class_names)
        self.videos = self._probe(paths)

    def draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips [count, frames, 3, size, size] and their labels [count], all 0 without classes.

        Raises:
            ValueError: every video is shorter than such a clip.
        """
        videos = self.long_enough(frames)
        clips, labels = zip(*(self._draw_clip(videos, frames, generator) for _ in range(count)), strict=True)
        return torch.stack(clips), torch.tensor(labels)

    def _draw_clip(self, videos: list[Video], frames: int, generator: torch.Generator) -> tuple[Tensor, int]:
        def random_below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        span = self._span(frames)
        for _ in range(TRIES):
            video = videos[random_below(len(videos))]
            start = random_below(video.frames - span + 1)
            mirrored = self.flip and random_below(2) == 1
            try:
                clip = read_video(video.path, range(start, start + span, self.frame_interval), self.size)
            except UnreadableVideo as error:  # another process may not know yet: it is tried again when it is drawn
                self._warn(video.path, error)
                continue
            return clip.flip(-1) if mirrored else clip, video.label
        raise ValueError(f"{self.folder}: {TRIES} clips in a row could not be read; the warnings say why")

    def _span(self, frames: int) -> int:
        """Frames of the file from the first to the last of a clip."""
        return (frames - 1) * self.frame_interval + 1

    def long_enough(self, frames: int) -> list[Video]:
        """The videos that a clip of so many frames can be drawn from; others are named in a warning, once.

        Raises:
            ValueError: there is none.
        """
        span = self._span(frames)
        videos = [video for video in self.videos if video.frames >= span]
        if not videos:
            longest = max(video.frames for video in self.videos)
            raise ValueError(
                f"{self.folder}: a clip spans {span} frames, but the longest video has {longest}: "
                f"ask for fewer frames or a smaller frame_interval, now {self.frame_interval}"
            )
        for video in self.videos:
            if video.frames < span:
                self._warn(video.path, f"{video.path}: has {video.frames} frames, but a clip spans {span}")
        return videos

    def _probe(self, paths: list[Path]) -> list[Video]:
        """The readable ones of paths."""
        with ThreadPoolExecutor(8) as pool:  # opening a file waits for the disk
            counts = list(pool.map(_count_or_error, paths))
        videos = []
        for path, frames in zip(paths, counts, strict=True):
            if isinstance(frames, UnreadableVideo):
                self._warn(path, frames)
                continue
            label = self.class_names.index(path.relative_to(self.folder).parts[0]) if self.class_names else 0
            videos.append(Video(path, frames, label))
        if not videos:
            raise ValueError(f"{self.folder} holds no readable video ({' '.join(SUFFIXES)})")
        return videos

    def _warn(self, path: Path, message: object) -> None:
        if path not in self._warned:
            self._warned.add(path)
            warnings.warn(f"video skipped: {message}", stacklevel=3)


def find_videos(folder: Path) -> list[Path]:
    """All videos below folder by their suffix, in the order of their names."""

    def is_video(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()

    return sorted(filter(is_video, folder.rglob("*")))


def _class_names(folder: Path, paths: Iterable[Path]) -> list[str]:
    places = [path.relative_to(folder).parts for path in paths]
    if outside := [place[0] for place in places if len(place) == 1]:
        raise ValueError(f"{folder}: with classes every video is in the folder of its class, but {outside[0]} is not")
    return sorted({place[0] for place in places})


def _count_or_error(path: Path) -> int | UnreadableVideo:
    try:
        return count_frames(path)
    except UnreadableVideo as error:
        return error
