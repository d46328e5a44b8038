"""Numbers the denoising steps of a video, by what a model is called with."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What a clock has to know of a call: numbers, read from the device in one go."""

    timestep: float  # of several, as tokens or frames that are given have their own, that of the noisiest
    shape: tuple[int, ...] = ()  # of the latent of one sample
    latent: tuple[float, ...] = ()  # sums that tell one tensor from another
    text: tuple[float, ...] = ()


class Video:
    """Where the denoising of a video is."""

    def __init__(self, reading: Reading):
        self.step = 0
        self.last = reading
        self.calls = [reading]  # of this step


class Clock:
    """Numbers the denoising steps of each video.

    Timesteps go one way, in most models down; against it, or with a latent of another shape, a new video begins.
    Within one timestep, which guidance calls a model with several times, and a scheduler may round several steps to, a
    new step has a latent that was not there before and a text that was. (Guidance repeats the latent, with another
    text; some guidance has other latents, too, but another text then.) What can be told by none of these, a preview
    ahead of a video that goes on below its timestep, ``new_video`` tells.

    Threads have videos of their own. Plain numbers, to be copied and pickled.
    """

    def __init__(self, rises: bool = False):
        self.rises = rises
        self.videos: dict[int, Video] = {}  # by thread

    def new_video(self) -> None:
        """The next call in this thread is the first one of a video."""
        self.videos.pop(threading.get_ident(), None)

    def at(self, reading: Reading) -> int:
        """The number of the step, from 0, that a call belongs to."""
        video = self.videos.get(threading.get_ident())
        if video is None or reading.shape != video.last.shape or self._turns(reading, video):
            video = self.videos[threading.get_ident()] = Video(reading)
        elif reading.timestep != video.last.timestep or self._goes_on(reading, video):
            video.step += 1
            video.calls = [reading]
        else:
            video.calls.append(reading)
        video.last = reading
        return video.step

    def _turns(self, reading: Reading, video: Video) -> bool:
        change = reading.timestep - video.last.timestep
        return change < 0 if self.rises else change > 0

    @staticmethod
    def _goes_on(reading: Reading, video: Video) -> bool:
        """Whether a call with the same timestep is one of the next step."""
        latents, texts = ({call[i] for call in video.calls} for i in (2, 3))
        return reading.latent not in latents and reading.text in texts


def read(arguments: Mapping[str, Any], rises: bool = False) -> Reading:
    """Of the arguments of a model's forward, by name: ``timestep``, the latent as the first tensor, the text as
    ``encoder_hidden_states``. Waits for the device, once."""
    timestep, text = arguments["timestep"], arguments.get("encoder_hidden_states")
    tensors = [x for name, x in arguments.items() if isinstance(x, Tensor) and name != "timestep"]
    latent = tensors[0] if tensors else None
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    # Of one sample, for the parts of guidance may come as a batch or one by one.
    parts = [[x[:1].float() for x in group if isinstance(x, Tensor) and x.dim()] for group in ([latent], texts)]
    sums = [total for part in parts for x in part for total in (x.sum(), x.square().sum())]
    if isinstance(timestep, Tensor):
        sums.append((timestep.min() if rises else timestep.max()).float())
    where = sums[0].device if sums else None
    numbers = torch.stack([x.to(where) for x in sums]).tolist() if sums else []
    count = 2 * len(parts[0])
    return Reading(
        numbers.pop() if isinstance(timestep, Tensor) else float(timestep),
        tuple(latent.shape[1:]) if latent is not None else (),
        tuple(numbers[:count]),
        tuple(numbers[count:]),
    )
