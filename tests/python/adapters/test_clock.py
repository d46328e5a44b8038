"""The steps of a video: what a model is called with, in the orders that pipelines and people call it in."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from adapters.tiny_models import BATCH, MOCHI_CASE, WAN_CASE, output

from frameattn.adapters import apply
from frameattn.adapters.clock import THREADS, Clock, Reading, read
from oracle import randn

DENSE, SWAPPED = True, False


def steps_of(timesteps, rises=False, guidance=False):
    """Of calls with these timesteps, each with a latent of its own; with guidance each twice, with two texts."""
    clock, steps = Clock(rises), []
    for index, timestep in enumerate(timesteps):
        readings = [
            Reading(timestep, (4,), latent=(100.0 + index, 0.0), text=(float(text),)) for text in range(1 + guidance)
        ]
        first, *others = [clock.at(reading) for reading in readings]
        assert all(step == first for step in others)
        steps.append(first)
    return steps


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("warm_up", [[], [0], [500], [0, 500]])
def test_every_video_begins_at_its_first_step(warm_up, guidance):
    video = [999, 900, 600, 300]
    expected = [0] * len(warm_up) + 2 * [0, 1, 2, 3]
    assert steps_of(warm_up + video + video, guidance=guidance) == expected


def test_image_to_video_begins_in_the_middle():
    assert steps_of([600, 400, 200, 600, 400, 999, 800]) == [0, 1, 2, 0, 1, 0, 1]


@pytest.mark.parametrize("warm_up", [[], [0.5], [1.0]])
def test_mochi_rises(warm_up):
    assert steps_of([*warm_up, 0.0, 0.1, 0.4, 0.0, 0.1], rises=True) == [0] * len(warm_up) + [0, 1, 2, 0, 1]


@pytest.mark.parametrize("guidance", [False, True])
def test_steps_may_have_the_same_timestep(guidance):
    """Of a scheduler that rounds them: UniPC or DPM++ with a large flow_shift."""
    assert steps_of([999, 999, 998, 998, 998, 997], guidance=guidance) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "calls",
    [
        [(1, "positive"), (1, "negative")],
        [(1, "positive"), (2, "negative")],  # Cosmos: each has a latent of its own
        [(1, "both"), (1, "positive"), (1, "positive")],  # LTX-2: without some blocks, without the sound
    ],
)
def test_guidance_is_one_step(calls):
    clock = Clock()
    texts = {"positive": (1.0,), "negative": (2.0,), "both": (3.0,)}
    for step in range(3):
        for latent, text in calls:
            reading = Reading(999, (4,), latent=(1000.0 + 10 * step + latent,), text=texts[text])
            assert clock.at(reading) == step


def test_a_latent_of_another_shape_is_another_video():
    clock = Clock()
    assert [clock.at(Reading(at, shape)) for at, shape in ((900, (4, 1)), (800, (4, 8)), (700, (4, 8)))] == [0, 0, 1]


@pytest.mark.parametrize("whole, cut", [((16, 7, 4, 6), (16, 2, 4, 6)), ((7, 16, 4, 6), (2, 16, 4, 6))])
def test_fewer_frames_are_the_same_video(whole, cut):
    """ChronoEdit leaves out what it reasoned in. Another size, or more frames, are another video."""
    clock = Clock()
    assert [clock.at(Reading(at, whole, 64 * (1.0,))) for at in (900, 800, 700)] == [0, 1, 2]
    assert [clock.at(Reading(at, cut, 30 * (1.0,))) for at in (600, 500, 400)] == [3, 4, 5]
    assert [clock.at(Reading(at, shape)) for at, shape in ((300, (*cut[:3], 4)), (200, whole))] == [0, 0]


def in_new_threads(calls):
    """The results of functions, in turn, each in a thread of its own, none of which ends before all are done."""
    results, done = [None] * len(calls), threading.Event()

    def run(index):
        results[index] = calls[index]()
        ran[index].set()
        assert done.wait(60)

    ran = [threading.Event() for _ in calls]
    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread, event in zip(threads, ran, strict=True):
        thread.start()
        assert event.wait(60)
    done.set()
    for thread in threads:
        thread.join()
    return results


def noisy(timestep, seed, text=0.0):
    """Of a video, from its noise to its values."""
    share, noise, values = timestep / 1000, randn(64, seed=seed), randn(64, seed=seed + 100)
    return Reading(timestep, (64,), tuple((share * noise + (1 - share) * values).tolist()), (text,))


@pytest.mark.parametrize("timesteps", [(1000, 750, 500, 250), (1000, 900, 800, 700, 600)])
@pytest.mark.parametrize("videos", [1, 2])
def test_steps_in_threads_of_their_own(timesteps, videos):
    """As asyncio.to_thread has them, with guidance; or DataParallel, for as many videos as there are devices."""
    clock = Clock()
    readings = [noisy(at, seed, text) for at in timesteps for text in (1.0, 2.0) for seed in range(videos)]
    steps = in_new_threads([partial(clock.at, reading) for reading in readings])
    assert steps == [step for step in range(len(timesteps)) for _ in range(2 * videos)]


def test_a_pool_of_threads_goes_from_video_to_video():
    clock = Clock()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for seed in range(3):
            pools = [one, other, other, one, one, other]
            readings = [noisy(at, seed) for at in (1000, 900, 800, 700, 600, 500)]
            steps = [pool.submit(clock.at, reading).result() for pool, reading in zip(pools, readings, strict=True)]
            assert steps == [0, 1, 2, 3, 4, 5]


def test_threads_with_videos_of_their_own():
    """One begins while another is in the midst of its video, with other noise or, of another text, the same."""
    for seed in (0, 1):
        clock, steps = Clock(), {}
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for pool, at in [
                (one, 1000),
                (one, 900),
                (one, 800),
                (other, 1000),
                (one, 700),
                (other, 900),
                (other, 800),
            ]:
                reading = noisy(at, seed if pool is other else 0, text=float(pool is other))
                steps.setdefault(pool is other, []).append(pool.submit(clock.at, reading).result())
        assert steps == {False: [0, 1, 2, 3], True: [0, 1, 2]}


def test_new_video_in_a_thread_that_would_go_on_with_one():
    clock = Clock()
    assert [clock.at(noisy(at, 0)) for at in (1000, 900)] == [0, 1]
    clock.new_video()
    assert [clock.at(noisy(at, 0)) for at in (800, 700)] == [0, 1]


def test_forgets_threads():
    clock = Clock()
    in_new_threads([partial(clock.at, noisy(1000 - index, 0)) for index in range(THREADS + 9)])
    assert len(clock.videos) == THREADS


def test_fresh_noise_at_the_same_timestep_is_another_video():
    """A preview of one step, or a model that has no more than one."""
    noise = [tuple(randn(64, seed=seed).tolist()) for seed in range(3)]
    moved = tuple(x + 0.02 for x in noise[2])
    clock = Clock()
    assert [clock.at(Reading(999, (64,), latent)) for latent in (*noise, moved)] == [0, 0, 0, 1]


def test_reads_the_noisiest_token_and_one_sample():
    latent, text = randn(2, 4, 3, seed=1), randn(2, 7, 5, seed=2)
    arguments = dict(hidden_states=latent, timestep=torch.tensor([0, 700, 500]), encoder_hidden_states=text)
    reading = read(arguments)
    assert reading.timestep == 700 and read(arguments, rises=True).timestep == 0 and reading.shape == (4, 3)
    assert read({**arguments, "hidden_states": latent[:1], "encoder_hidden_states": text[:1]}) == reading
    assert read({**arguments, "hidden_states": 1.001 * latent}).latent != reading.latent
    assert read({**arguments, "encoder_hidden_states": (text, text[:1])}).text != reading.text
    assert read(dict(timestep=3)) == Reading(3.0)


# ---- In models -------------------------------------------------------------------------------------------------------


def dense_calls(model, handle, case, timesteps, calls=1):
    """Whether each call with one of these timesteps is dense, with the latents of a schedule: new in each step."""
    found = []
    with torch.no_grad():
        for index, timestep in enumerate(timesteps):
            call = case.call(dtype=torch.float32)
            call["hidden_states"] = call["hidden_states"] + 0.01 * index
            call["timestep"] = torch.full((BATCH,), timestep)
            for _ in range(calls):
                before = handle.counts.vmonarch
                output(model, call)
                call["encoder_hidden_states"] = -call["encoder_hidden_states"]
                found.append(handle.counts.vmonarch == before)
    return found


@pytest.mark.parametrize("warm_up", [[], [0], [500]])
@pytest.mark.parametrize("calls", [1, 2])
def test_dense_steps_of_every_video(warm_up, calls):
    model = WAN_CASE.build(torch.float32)
    handle = apply(model, dense_steps=2)
    video = [DENSE, DENSE, SWAPPED, SWAPPED]
    found = dense_calls(model, handle, WAN_CASE, warm_up + 3 * [999, 800, 500, 200], calls)[calls * len(warm_up) :]
    assert found == [dense for dense in 3 * video for _ in range(calls)]


def test_dense_steps_of_a_scheduler_that_rounds():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=16.0
    )
    scheduler.set_timesteps(100)
    timesteps = scheduler.timesteps[:4].tolist()
    assert timesteps == [999, 999, 998, 998]
    model = WAN_CASE.build(torch.float32)
    found = dense_calls(model, apply(model, dense_steps=2), WAN_CASE, timesteps)
    assert found == [DENSE, DENSE, SWAPPED, SWAPPED]


@pytest.mark.parametrize("warm_up", [[], [500], [1000]])
def test_dense_steps_of_mochi(warm_up):
    model = MOCHI_CASE.build(torch.float32)
    handle = apply(model, dense_steps=2)
    found = dense_calls(model, handle, MOCHI_CASE, warm_up + 2 * [0, 100, 300, 700])[len(warm_up) :]
    assert found == 2 * [DENSE, DENSE, SWAPPED, SWAPPED]


def test_dense_steps_of_steps_in_threads_of_their_own():
    model = WAN_CASE.build(torch.float32)
    handle = apply(model, dense_steps=2)
    in_new_threads([partial(dense_calls, model, handle, WAN_CASE, [at]) for at in (999, 900, 800, 700)])
    assert handle.counts.vmonarch == 2 and handle.counts.calls == 4


def test_dense_steps_are_dense_attention():
    model, untouched, swapped = (WAN_CASE.build(torch.float32) for _ in range(3))
    apply(swapped)
    apply(model, dense_steps=1)
    with torch.no_grad():
        for timestep in (900, 900, 700, 500, 900):
            call = {**WAN_CASE.call(dtype=torch.float32), "timestep": torch.full((BATCH,), timestep)}
            expected = untouched if timestep == 900 else swapped
            assert torch.equal(output(model, call), output(expected, call)), timestep


def test_dense_steps_of_a_pipeline_are_those_of_the_video():
    """Wan 2.2's second transformer goes on where the first one stopped."""
    pipe = SimpleNamespace(transformer=WAN_CASE.build(torch.float32), transformer_2=WAN_CASE.build(torch.float32))
    handle = apply(pipe, dense_steps=2)
    for _ in range(2):
        assert dense_calls(pipe.transformer, handle, WAN_CASE, [999]) == [DENSE]
        assert dense_calls(pipe.transformer_2, handle, WAN_CASE, [800, 500]) == [DENSE, SWAPPED]


def test_new_video_says_what_nothing_else_does():
    """A video that goes on below the timesteps of one before it."""
    model = WAN_CASE.build(torch.float32)
    handle = apply(model, dense_steps=2)
    for timesteps in ([999], [700, 500, 300], [200, 100, 0]):
        found = dense_calls(model, handle, WAN_CASE, timesteps)
        assert found == [DENSE, DENSE, SWAPPED][: len(timesteps)]
        handle.new_video()
