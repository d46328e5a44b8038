"""Clips from a folder of video files, or one folder for each class of them.

Creating the data set reads the header of every file; clips are decoded when they are drawn. A draw depends on the
generator alone, also where files turn out to be broken, so that all worker processes agree.
"""

import math
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from statistics import median_low

import torch
from torch import Tensor

from frameattn.data.decoding import UnreadableVideo, check_fps, probe_video, read_video
from frameattn.data.find_videos import SUFFIXES, find_videos

TRIES = 100  # draws in a row that may hit broken files
RATES_DIFFER = Fraction(3, 2)  # times
FRAME_INTERVAL = 3  # where neither frame_interval nor fps is given


@dataclass(frozen=True)
class Video:
    """A readable file, the number of its frames, how many a second, and the label of its class (0 without classes)."""

    path: Path
    frames: int
    label: int
    rate: Fraction


class VideoFolder:
    """Clips [T, 3, size, size] in -1..1 from the videos of a folder and its sub-folders.

    A clip is a random stretch of a random video: every ``frame_interval``-th frame or ``fps`` frames a second, the
    short side scaled to size, the square in the middle. Files that cannot be read or are too short are skipped and
    named in a warning, once a process; without fps a warning says where the rates of files differ much.

    Args:
        folder: where the videos are; links are followed, hidden files left out.
        size: side of a frame.
        frame_interval: 1 takes every frame of a file, 3 (without fps) every third.
        fps: frames a second of a clip, whatever the files have: the same motion is as fast in all clips. Not together
            with frame_interval. Of a file that has fewer, frames repeat.
        classes: the sub-folders are classes, labelled 0, 1, ... in the order of their names (``class_names``).
        flip: mirrors half of the clips.

    Attributes:
        frame_rate: frames a second of the clips; where files differ, that of the middle one.

    Raises:
        ValueError: an argument is out of its range, there is no readable video, or with classes one outside of them.
        MissingExtra: PyAV is not installed.
    """

    channels = 3

    def __init__(
        self,
        folder: str | PathLike,
        size: int = 256,
        frame_interval: int | None = None,
        classes: bool = False,
        flip: bool = False,
        fps: float | None = None,
    ):
        if fps is not None and frame_interval is not None:
            raise ValueError(
                f"fps {fps!r} and frame_interval {frame_interval!r} exclude one another: make one of them null"
            )
        frame_interval = FRAME_INTERVAL if frame_interval is None else frame_interval
        for name, value in (("size", size), ("frame_interval", frame_interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.folder = Path(folder)
        self.size = size
        self.frame_interval = frame_interval
        self.fps = None if fps is None else check_fps(fps)
        self.flip = flip
        self._warned: set[Path] = set()
        paths = find_videos(self.folder)
        self.class_names = _class_names(self.folder, paths) if classes else []
        self.num_classes = len(self.class_names)
        self.videos = self._probe(paths)
        self.found = len(paths)
        self.frame_rate = float(self.fps or median_low(video.rate for video in self.videos) / frame_interval)
        self._compare_rates()

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

        for _ in range(TRIES):
            video = videos[random_below(len(videos))]
            step = self.step(video)
            start = random_below(video.frames - self._span(video, frames) + 1)
            mirrored = self.flip and random_below(2) == 1
            try:
                clip = read_video(video.path, [start + i * step for i in range(frames)], self.size)
            except UnreadableVideo as error:  # another process may not know yet: it is tried again when it is drawn
                self._warn(video.path, error)
                continue
            return clip.flip(-1) if mirrored else clip, video.label
        raise ValueError(f"{self.folder}: {TRIES} clips in a row could not be read; the warnings say why")

    def step(self, video: Video) -> int | Fraction:
        """Frames of the file from one of a clip to the next."""
        return video.rate / self.fps if self.fps else self.frame_interval

    def _span(self, video: Video, frames: int) -> int:
        """Frames of the file from the first to the last of a clip."""
        return math.floor((frames - 1) * self.step(video) + Fraction(1, 2)) + 1

    def positions(self, video: Video) -> list[int | Fraction]:
        """Which frames of the file a clip has that takes all of it."""
        step = self.step(video)
        return [i * step for i in range(math.ceil((video.frames - Fraction(1, 2)) / step))]

    def long_enough(self, frames: int) -> list[Video]:
        """The videos that a clip of so many frames can be drawn from; others are named in a warning, once.

        Raises:
            ValueError: there is none.
        """
        videos = [video for video in self.videos if video.frames >= self._span(video, frames)]
        if not videos:
            longest = max(self.videos, key=lambda video: video.frames / self.step(video))
            change = f"or a smaller frame_interval, now {self.frame_interval}, or set data.fps"
            if self.fps:
                change = f"or a higher data.fps, now {float(self.fps):.4g}"
            raise ValueError(
                f"{self.folder}: a clip spans {self._span(longest, frames)} frames, but the longest video has "
                f"{longest.frames} ({self._name(longest)}): ask for fewer frames, now {frames}, {change}"
            )
        for video in self.videos:
            if video.frames < (span := self._span(video, frames)):
                self._warn(video.path, f"{video.path}: has {video.frames} frames, but a clip spans {span}")
        return videos

    def _name(self, video: Video) -> str:
        """A file and its rate."""
        return f"{video.path.relative_to(self.folder)}, {float(video.rate):.4g} frames a second"

    def _compare_rates(self) -> None:
        """Warns where the same motion is not as fast in all clips, or where frames repeat."""
        moving = sorted((video for video in self.videos if video.frames > 1), key=lambda video: video.rate)
        if not moving:
            return
        slowest, fastest = moving[0], moving[-1]
        if self.fps and slowest.rate * RATES_DIFFER < self.fps:
            count = sum(video.rate * RATES_DIFFER < self.fps for video in moving)
            warnings.warn(
                f"{self.folder}: {count} of {len(moving)} videos have fewer frames than fps {float(self.fps):.4g} asks "
                f"for, so that frames repeat; the slowest is {self._name(slowest)}",
                stacklevel=3,
            )
        elif not self.fps and slowest.rate * RATES_DIFFER < fastest.rate:
            warnings.warn(
                f"{self.folder}: frame rates differ from {self._name(slowest)}, to {self._name(fastest)}, so that the "
                "same motion is not as fast in all clips: set data.fps to the rate that all shall have",
                stacklevel=3,
            )

    def summary(self, frames: int) -> str:
        """How many videos there are for clips of so many frames, and why not all."""
        used = len(self.long_enough(frames))
        reasons = {"cannot be read": self.found - len(self.videos), "too short": len(self.videos) - used}
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        return (
            f"{self.folder}: {used} of {self.found} videos are used for clips of {frames} frames, "
            f"{self.frame_rate:.4g} a second" + (f" ({left_out})" if left_out else "")
        )

    def _probe(self, paths: list[Path]) -> list[Video]:
        """The readable ones of paths."""
        with ThreadPoolExecutor(8) as pool:  # opening a file waits for the disk
            probes = list(pool.map(_probe_or_error, paths))
        videos = []
        for path, probe in zip(paths, probes, strict=True):
            if isinstance(probe, UnreadableVideo):
                self._warn(path, probe)
                continue
            frames, rate = probe
            label = self.class_names.index(path.relative_to(self.folder).parts[0]) if self.class_names else 0
            videos.append(Video(path, frames, label, rate))
        if not videos:
            raise ValueError(f"{self.folder} holds no readable video ({' '.join(SUFFIXES)})")
        return videos

    def _warn(self, path: Path, message: object) -> None:
        if path not in self._warned:
            self._warned.add(path)
            warnings.warn(f"video skipped: {message}", stacklevel=3)


def _class_names(folder: Path, paths: Iterable[Path]) -> list[str]:
    places = [path.relative_to(folder).parts for path in paths]
    if outside := [place[0] for place in places if len(place) == 1]:
        raise ValueError(f"{folder}: with classes every video is in the folder of its class, but {outside[0]} is not")
    return sorted({place[0] for place in places})


def _probe_or_error(path: Path) -> tuple[int, Fraction] | UnreadableVideo:
    try:
        return probe_video(path)
    except UnreadableVideo as error:
        return error
