"""Several processes that train together: what one does, and one message whatever happens to them."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import processes as pool
from frameattn._errors import UsageError
from frameattn.cli.main import main
from frameattn.data import EncodedClip, LatentClips, save_latents
from frameattn.models.framedit import CLASSES
from frameattn.training import Trainer, create_trainer, read_config
from frameattn.training.config import Config, Named, Stage
from frameattn.training.draws import Draws, draw_each
from frameattn.training.files import load_state, lock
from frameattn.training.processes import ALONE, Processes, gathered, local

CPU = torch.device("cpu")
TINY = Path(__file__).parent / "tiny.yaml"
STAGES = [  # odd batches, whose shares differ in size, and images alone, which leave temporal blocks unused
    dict(frames=0, images=2, batch=4, steps=2),
    dict(frames=2, images=1, batch=3, steps=1),
    dict(frames=4, batch=5, steps=17),
]
OPTIONS = dict(stages=STAGES, accumulation=2, checkpoint_blocks=1, warmup=0, schedule="constant", clip_norm=0.05)


@pytest.fixture(scope="module")
def two():
    started = pool.Processes(count=2)
    yield started
    started.stop()


class InDtype:
    """A data set whose clips are of another dtype."""

    def __init__(self, dataset, dtype):
        self.dataset, self.dtype = dataset, dtype

    def draw_each(self, frames, generators):
        clips, *others = draw_each(self.dataset, frames, generators, with_text=isinstance(self.dataset, LatentClips))
        return clips.to(self.dtype), *others


def trainer_of(group, folder, dtype, shard, config=None) -> Trainer:
    """The trainer of one of the processes of group; without one it is alone."""
    config = config or read_config(TINY, dict(OPTIONS, shard=shard))
    alone = create_trainer(config, folder, CPU)
    together = Processes(dist.get_rank(group), dist.get_world_size(group)) if group else ALONE
    dataset = InDtype(alone.draws.dataset, dtype)
    return Trainer(alone.config, alone.model.to(dtype), dataset, folder, CPU, together)


def after(group, folder, steps, dtype, shard):
    """All that a run has after so many steps, with the losses and the gradient's norm of the last of them."""
    trainer = trainer_of(group, folder, dtype, shard)
    if (folder / "state.pt").exists():
        trainer.load(load_state(folder / "state.pt"))
        for moments in trainer.optimizer.state.values() if shard and group else ():
            part = local(moments["exp_avg"])
            assert part.untyped_storage().nbytes() == part.nbytes  # no view of the whole
    batches = trainer._batches()
    while trainer.step < steps:
        losses, norm = trainer._train_step(batches)
        trainer.step += 1
    trainer.save()
    tensors = {"model": trainer.model.state_dict(), "ema": trainer.ema, "optimizer": trainer.optimizer.state_dict()}
    return {**gathered(tensors, keep=True), "losses": trainer.processes.mean(losses), "norm": norm}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in one process, once for all tests."""
    results = {}

    def run(steps, dtype):
        if (steps, dtype) not in results:
            results[steps, dtype] = after(None, tmp_path_factory.mktemp("alone"), steps, dtype, False)
        return results[steps, dtype]

    return run


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(("steps", "dtype", "tolerance"), [(5, torch.float32, 1e-6), (20, torch.float64, 1e-12)])
def test_two_processes_train_as_one(two, alone, tmp_path, shard, steps, dtype, tolerance):
    expected = alone(steps, dtype)
    for actual in two.run(after, tmp_path, steps, dtype, shard):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    saved = load_state(tmp_path / "state.pt")  # the first process wrote what all of them gathered
    torch.testing.assert_close(saved["ema"], expected["ema"], rtol=0, atol=tolerance)
    assert {type(value) for value in saved["model"].values()} == {torch.Tensor}


@pytest.mark.parametrize("shards", [(None, True), (True, None), (False, True)])
def test_other_number_of_processes_resumes(two, alone, tmp_path, shards):
    """Four steps, then the fifth: alone (None), by data parallel processes or by those that shard."""
    for steps, shard in zip((4, 5), shards, strict=True):
        arguments = (tmp_path, steps, torch.float64)
        result = after(None, *arguments, False) if shard is None else two.run(after, *arguments, shard)[0]
    torch.testing.assert_close(result, alone(5, torch.float64), rtol=0, atol=1e-12)


def text_to_video(group, folder, data, shard, lora):
    sizes = dict(num_layers=2, num_row_attn_heads=2, row_attn_head_dim=8, num_col_attn_heads=2, patch_size=2)
    model = dict(name="FrameDiTHT2V-XL/256-2-1-2-concat", video_length=3, **sizes)
    config = Config(
        model=Named(model.pop("name"), model),
        data=Named(str(data)),
        stages=[Stage(frames=3, images=1, batch=3, steps=4)],
        latte="frozen",
        lora=lora,
        learning_rate=1e-3,
        clip_start=0,
        checkpoint_blocks=1,
        shard=shard,
    )
    alone = create_trainer(config, folder, CPU, resuming=True)  # resuming: Latte is frozen but not read
    together = Processes(dist.get_rank(group), 2) if group else ALONE
    trainer = Trainer(alone.config, alone.model.double(), alone.draws.dataset, folder, CPU, together)
    trainer.draws.dataset = InDtype(alone.draws.dataset, torch.float64)
    assert 0 < len(trainer.parameters) < len(list(trainer.model.parameters()))
    batches = trainer._batches()
    for trainer.step in range(4):
        batch = next(batches)
        conditions = {name: condition.double() for name, condition in batch.conditions.items()}
        trainer._train_step(iter([batch._replace(conditions=conditions)]))
    return gathered({"model": trainer.model.state_dict(), "ema": trainer.ema}, keep=True)


@pytest.mark.parametrize(("shard", "lora"), [(False, 0), (True, 2)])
def test_frozen_text_to_video(two, tmp_path, shard, lora):
    if lora:
        pytest.importorskip("peft")

    def clip(seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = 2 + seed % 2
        latents, text = torch.randn(4, 4, 8, 8, generator=generator), torch.randn(tokens, 8, generator=generator)
        return EncodedClip(latents, text, torch.ones(tokens))

    data = tmp_path / "clips.safetensors"
    save_latents(data, {f"clip{i}": clip(i) for i in range(3)}, scaling_factor=0.5)
    expected = text_to_video(None, tmp_path, data, False, lora)
    for actual in two.run(text_to_video, tmp_path, data, shard, lora):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_each_process_draws_its_own_clips_alone():
    class Counting:
        """Has ``draw`` alone, which loads the clips."""

        drawn = 0

        def draw(self, count, frames, generator):
            self.drawn += count
            return trainer.draws.dataset.draw(count, frames, generator)

    trainer = create_trainer(read_config(TINY, OPTIONS), Path(), CPU)
    arguments = (trainer.config, trainer.stages, 1000, CLASSES, 10, 0.5)
    whole = Draws(trainer.draws.dataset, *arguments)
    for item, batch, clips in ((0, 4, 2), (5, 3, 2), (6, 5, 1)):
        expected = whole[item]
        for rank in range(2):
            dataset = Counting()
            share = Draws(dataset, *arguments, rank, 2)[item]
            assert dataset.drawn == clips * len(range(rank, batch, 2))
            for part in ("x", "t", "noise"):
                assert torch.equal(getattr(share, part), getattr(expected, part)[rank::2])
            for name, labels in share.conditions.items():
                assert torch.equal(labels, expected.conditions[name][rank::2])


def test_labels_are_dropped_with_their_probability():
    trainer = create_trainer(read_config(TINY, dict(stages=None, batch=500, images=1)), Path(), CPU)
    assert trainer.model.training and not trainer.model.y_embedder.training  # which would drop others
    conditions = trainer.draws[0].conditions
    dropped = conditions["y"] == 10
    assert torch.equal(dropped, conditions["y_image"][:, 0] == 10)  # all of a clip together
    assert 0.05 < dropped.float().mean() < 0.16  # class_dropout_prob: 0.1
    assert conditions["y"][~dropped].max() == 9


def test_each_process_has_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert Processes(5, 6, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Processes(1, 2, 1).device(CPU) == CPU and ALONE.device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="this machine has 2: use torchrun --nproc_per_node 2"):
        Processes(2, 3, 2).device(torch.device("cuda"))
    with pytest.raises(UsageError, match="device cuda:0 is one GPU for 3 processes: use --device cuda"):
        Processes(0, 3, 0).device(torch.device("cuda", 0))


# Runs of the command, in processes that torchrun would start.


def command(rank, port, arguments, output, killed_at):
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ |= dict(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    torch.set_num_threads(1)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout.reconfigure(line_buffering=True)
    save, saves = torch.save, 0

    def killed_in_save(state, path):
        nonlocal saves
        saves += 1
        if saves == killed_at:
            path.write_bytes(b"half of a file")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)

    torch.save = killed_in_save
    sys.exit(main(arguments))


class Command:
    """``frameattn train`` by two processes."""

    def __init__(self, folder, *options, killed_at=0, other=None):
        context = multiprocessing.get_context("forkserver")
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = str(self.store.port)
        self.outputs = [folder.with_name(f"{folder.name}-{rank}") for rank in range(2)]
        options = ["train", "--config", str(TINY), "--device", "cpu", *options, "--out"]
        self.processes = [
            context.Process(target=command, args=(rank, port, [*options, str(out)], output, killed_at))
            for rank, (output, out) in enumerate(zip(self.outputs, (folder, other or folder), strict=True))
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> tuple[list[int], str, str]:
        """The exit codes, and what all of them printed to stdout and of ours to stderr."""
        for process in self.processes:
            process.join(120)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        out, err = ("".join(Path(f"{o}.{name}").read_text() for o in self.outputs) for name in ("stdout", "stderr"))
        return codes, out, err


def wait_for(path):
    deadline = time.monotonic() + 400  # beside a build, starting two processes can take minutes
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "--config", str(TINY), "--out", str(folder), "--device", "cpu"]) == 0
    return load_state(folder / "state.pt")


def test_kill_while_saving_ends_all_with_one_message(two, tmp_path, whole_run):
    folder = tmp_path / "run"
    codes, _, err = Command(folder, "--save_every", "2", "--shard", killed_at=2).wait()
    assert codes == [-signal.SIGKILL, 1]
    expected = (
        f"frameattn train: one of the 2 processes ended or does not answer; resume with: frameattn train --out {folder}"
    )
    assert [line for line in err.splitlines() if "Warning" not in line and "warn" not in line] == [expected]
    assert load_state(folder / "state.pt")["step"] == 2
    assert main(["train", "--out", str(folder), "--shard", "false"]) == 0  # alone
    resumed = load_state(folder / "state.pt")
    for part in ("model", "ema"):
        torch.testing.assert_close(resumed[part], whole_run[part], rtol=0, atol=1e-6)


def test_signal_to_one_process_stops_both_at_the_same_step(two, tmp_path):
    folder = tmp_path / "run"
    stages = "[{frames: 4, batch: 2, steps: 100000}]"
    run = Command(folder, "--save_every", "2", "--stages", stages)
    wait_for(folder / "checkpoint.safetensors")
    os.kill(run.processes[1].pid, signal.SIGTERM)
    codes, out, err = run.wait()
    assert codes == [128 + signal.SIGTERM] * 2
    step = load_state(folder / "state.pt")["step"]
    assert out.count("stopped at") == 1 and f"stopped at step {step} of 100000" in out
    assert out.count("step 1/100000 ") == 1  # one log
    assert "Traceback" not in err


def test_error_of_both_is_said_once(two, tmp_path):
    codes, _, err = Command(tmp_path / "run", "--stages", "[{frames: 4, batch: 1, steps: 3}]").wait()
    assert sorted(codes) == [1, 2]
    assert err == "frameattn train: stages[0].batch is 1: 2 processes need at least a clip each\n"
    assert not (tmp_path / "run").exists()


def test_machines_with_folders_of_their_own(two, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    assert main(["train", "--config", str(TINY), "--out", str(folder), "--device", "cpu"]) == 0
    codes, _, err = Command(folder, other=other).wait()
    assert sorted(codes) == [1, 2] and err.count("\n") == 1
    assert "frameattn train: not all processes see the same state.pt: --out" in err


def test_torchrun_that_is_stopped_saves(tmp_path):
    """SIGTERM reaches processes that prepare data, too, and torchrun ends with the others' end."""
    folder = tmp_path / "run"
    options = ["--config", TINY, "--out", folder, "--stages", "[{frames: 4, batch: 2, steps: 100000}]", "--shard"]
    options += ["--save_every", "2", "--workers", "1", "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "frameattn", "train"]
    run = subprocess.Popen(
        [sys.executable, *torchrun, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "checkpoint.safetensors")
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=120)
    stopped = re.findall(r"stopped at step (\d+) of 100000", out)
    assert [int(step) for step in stopped] == [load_state(folder / "state.pt")["step"]], err


def hold(folder, connection):
    with lock(folder):
        child = os.fork()  # such as a process that prepares data, which a kill leaves alive for a while
        connection.send(child)
        time.sleep(300)


def test_second_run_is_refused_until_the_first_is_gone(tmp_path, capsys):
    folder = tmp_path / "run"
    ours, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("forkserver").Process(target=hold, args=(folder, theirs))
    holder.start()
    child = ours.recv()
    try:
        assert main(["train", "--config", str(TINY), "--out", str(folder), "--device", "cpu"]) == 2
        expected = (
            f"process {holder.pid} on {socket.gethostname()} is training in {folder}: choose another --out, or wait"
        )
        assert capsys.readouterr().err == f"frameattn train: {expected}\n"
        holder.kill()
        holder.join()
        with lock(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
    assert not folder.exists()  # nothing was written into it
