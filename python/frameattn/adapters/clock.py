"""Numbers the denoising steps of a video, by what a model is called with."""

import math
import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What a clock has to know of a call: numbers, read from the device in one go."""

    timestep: float  # of several, as tokens or frames that are given have their own, that of the noisiest
    shape: tuple[int, ...] = ()  # of the latent of one sample
    latent: tuple[float, ...] = ()  # some of its numbers
    text: tuple[float, ...] = ()  # sums that tell one text from another

    def differs(self, other: "Reading") -> float:
        """The distance between the latents, of the length of one."""
        if self.shape != other.shape:
            return math.inf
        return math.dist(self.latent, other.latent) / (math.hypot(*other.latent) + 1e-12)

    def has_fewer_frames(self, other: "Reading") -> bool:
        """Than the other latent, [C, T, H, W] or [T, C, H, W], which else has the same shape."""
        ours, theirs = self.shape, other.shape
        fewer = [a < b for a, b in zip(ours[:2], theirs[:2], strict=False) if a != b]
        return len(ours) == len(theirs) == 4 and ours[2:] == theirs[2:] and fewer == [True]


class Video:
    """Where the denoising of a video is."""

    def __init__(self, reading: Reading):
        self.step = 0
        self.calls = [reading]  # of this step

    def differs(self, reading: Reading) -> float:
        return min(reading.differs(call) for call in self.calls)


THREADS = 64  # whose videos a clock knows
_lock = threading.Lock()  # of all clocks: these are copied and pickled, which a lock cannot be


class Clock:
    """Numbers the denoising steps of each video.

    Timesteps go one way, in most models down; against it, or with a latent of another shape, a new video begins. Calls
    with one timestep may be of one step, as guidance calls a model several times, with the same latent, or at least
    with another text. Else they are steps that a scheduler rounds to the same number; or, if there was one step so far
    and the latent is fresh noise, that was a preview, and another video begins. What none of this tells, a video that
    begins below the timesteps of one before it, ``new_video`` tells.

    Fewer frames of the same size are no other shape: ChronoEdit goes on with the first and the last.

    Threads have videos of their own; but the steps of one may come from several, as an executor has them, or
    DataParallel, with new ones for every step. So a call whose latent is far from that of its thread's last call is of
    the video of any thread that it goes on with and is near to, if there is one.

    Plain numbers, to be copied and pickled.
    """

    # Of a latent's length. Steps with one timestep move it by a few hundredths; fresh noise is farther than 1.
    NEAR = 0.25
    SAME_VIDEO = 0.75  # two steps with any timesteps

    def __init__(self, rises: bool = False):
        self.rises = rises
        self.videos: dict[int, Video | None] = {}  # by thread, the one that was called last at the end

    def new_video(self) -> None:
        """The next call in this thread is the first one of a video."""
        with _lock:
            self._keep(None)

    def at(self, reading: Reading) -> int:
        """The number of the step, from 0, that a call belongs to."""
        with _lock:
            video = self._video(reading)
            if video is None:
                video = Video(reading)
            elif self._kind(reading, video) == "next step":
                video.step += 1
                video.calls = [reading]
            else:
                video.calls.append(reading)
            self._keep(video)
            return video.step

    def _keep(self, video: Video | None) -> None:
        """As that of this thread; None: the next call begins one. What ended threads leave is forgotten in time."""
        self.videos.pop(threading.get_ident(), None)
        self.videos[threading.get_ident()] = video
        if len(self.videos) > THREADS:
            del self.videos[next(iter(self.videos))]

    def _video(self, reading: Reading) -> Video | None:
        """That a call goes on with; None if it begins one."""
        own = self.videos.get(threading.get_ident())
        if own is None and threading.get_ident() in self.videos:
            return None
        known = [video for video in (own, *self.videos.values()) if video is not None]
        candidates = [video for video in known if self._kind(reading, video) != "new video"]
        near = [video for video in candidates if video.differs(reading) < self.SAME_VIDEO]
        if own in candidates and (own in near or not near):
            return own
        return min(near, key=lambda video: video.differs(reading), default=None)

    def _kind(self, reading: Reading, video: Video) -> Literal["same step", "next step", "new video"]:
        """What a call is behind those of a video."""
        last = video.calls[-1]
        change = reading.timestep - last.timestep
        same_shape = reading.shape == last.shape
        if change and (change > 0) == self.rises and (same_shape or reading.has_fewer_frames(last)):
            return "next step"
        if change or not same_shape:
            return "new video"
        distance = video.differs(reading)
        if distance == 0 or all(reading.text != call.text for call in video.calls):
            return "same step"
        return "next step" if video.step or distance < self.NEAR else "new video"


def read(arguments: Mapping[str, Any], rises: bool = False) -> Reading:
    """Of the arguments of a model's forward, by name: ``timestep``, the latent as the first tensor, the text as
    ``encoder_hidden_states``. Waits for the device, once."""
    timestep, text = arguments["timestep"], arguments.get("encoder_hidden_states")
    tensors = [x for name, x in arguments.items() if isinstance(x, Tensor) and x.dim() and name != "timestep"]
    # Of one sample, for the parts of guidance may come as a batch or one by one.
    latents = [_some(x[0]) for x in tensors[:1]]
    texts = [x[:1].float() for x in (text if isinstance(text, (list, tuple)) else [text]) if isinstance(x, Tensor)]
    sums = [torch.stack([x.sum(), x.square().sum()]) for x in texts]
    at = [(timestep.min() if rises else timestep.max()).float().view(1)] if isinstance(timestep, Tensor) else []
    parts = [*latents, *sums, *at]
    numbers = torch.cat([x.to(parts[0].device) for x in parts]).tolist() if parts else []
    noisiest = numbers.pop() if at else float(timestep)
    count = len(latents[0]) if latents else 0
    shape = tuple(tensors[0].shape[1:]) if tensors else ()
    return Reading(noisiest, shape, tuple(numbers[:count]), tuple(numbers[count:]))


def _some(x: Tensor, count: int = 64) -> Tensor:
    """So many numbers of x, from all over it."""
    x = x.reshape(-1)
    return x[:: max(1, x.numel() // count)][:count].float()
