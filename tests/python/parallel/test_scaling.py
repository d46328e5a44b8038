"""benchmarks/scaling.py: its bytes and collectives are those of real calls, its page says what it computes."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import frameattn
from benchmarks import scaling
from benchmarks.scaling import VIDEOS, Attention, Machine, share
from frameattn import parallel
from oracle import randn

DTYPES = {2: torch.bfloat16, 4: torch.float32}


class Recorder(TorchDispatchMode):
    """What this process puts into collectives, and what torch's own operators read and write, in bytes."""

    def __init__(self):
        super().__init__()
        self.to_each, self.summed, self.torch_bytes = [], [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = str(operator)
        if name == "_c10d_functional.all_to_all_single.default":
            tensor, _, sizes, _ = args
            self.to_each.append([size * tensor.element_size() for size in sizes])
        elif name == "_c10d_functional.all_reduce.default":
            self.summed.append(args[0].nbytes)
        elif name.startswith("aten.") and not (operator.is_view or re.search("view|empty|detach", name)):
            read = args[1:] if name == "aten.copy_.default" else args
            tensors = (x for x in tree_leaves((read, result)) if isinstance(x, torch.Tensor))
            self.torch_bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)  # some are expanded
        return result


def recorded(function, *leaves):
    """Forward and backward of ``function(*leaves)``, each under a Recorder that has torch count collectives, too."""
    records = []

    def record(step, *args):
        with CommDebugMode() as counter, Recorder() as recorder:
            result = step(*args)
        assert counter.get_total_counts() == len(recorder.to_each) + len(recorder.summed)
        records.append(recorder)
        return result

    out = record(function, *leaves)
    outs = [x for x in tree_leaves(out) if x.requires_grad]
    record(torch.autograd.grad, outs, leaves, [torch.ones_like(x) for x in outs])
    return [(r.to_each, r.summed, r.torch_bytes) for r in records]


def rows(call, tokens, dims, seed=0):
    return [
        randn(call.batch, call.heads, tokens, dim, seed=seed + i, dtype=DTYPES[call.itemsize], requires_grad=True)
        for i, dim in enumerate(dims)
    ]


def frames_are_shared_out(group, call, counts, extra_keys):
    own = counts[dist.get_rank(group)] * call.positions
    dims = (call.head_dim, call.head_dim, call.value_dim)
    extra = rows(call, extra_keys, dims[1:], seed=3) if extra_keys else []

    def attention(query, key, value, *extra):
        return parallel.vmonarch_attention(
            query, key, value, call.frames, group=group, frames_per_rank=counts, iterations=call.iterations,
            dense_first_frame=call.dense_first_frame, return_lse=call.return_lse,
            **dict(zip(("extra_key", "extra_value"), extra, strict=False)),
        )  # fmt: skip

    return recorded(attention, *rows(call, own, dims), *extra)


def heads_are_shared_out(group, call, tokens, text):
    dims = (call.head_dim, call.head_dim, call.value_dim)
    own = rows(call, tokens[dist.get_rank(group)], dims)
    replicated = rows(call, text, dims, seed=3) if text else []

    def vmonarch(query, key, value, *text):
        out = frameattn.vmonarch_attention(query, key, value, call.frames)
        return (out, torch.nn.functional.scaled_dot_product_attention(*text)) if text else out

    def attention(query, key, value, *text):
        return parallel.ulysses(query, key, value, vmonarch, replicated=text, group=group, tokens_per_rank=tokens)

    return recorded(attention, *own, *replicated)


def check(answers, expected):
    """Of each direction: what the processes say that they send to one another is what the matrices say."""
    for direction, matrices in enumerate((expected, scaling.backward(expected))):
        for rank, answer in enumerate(answers):
            to_each = answer[direction][0]
            others = [[0 if q == rank else size for q, size in enumerate(sizes)] for sizes in to_each]
            assert others == [matrix[rank] for matrix in matrices], (direction, rank)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("counts", [(3, 3), (2, 1), (0, 2, 1), (1, 3, 0, 1), (0, 3)])
def test_bytes_of_shared_frames(processes, counts, iterations, first, itemsize):
    call = Attention(sum(counts), 7, 3, 16, 24, 2, itemsize, iterations, first, return_lse=iterations == 2)
    answers = processes.run(frames_are_shared_out, call, list(counts), 0, ranks=len(counts))
    matrices = scaling.by_frames(call, counts)
    expected = 4 if first and iterations == 1 else 2 * iterations
    assert len(matrices) == (expected if sum(count > 0 for count in counts) > 1 else 0)
    check(answers, matrices)
    assert all(summed == [] for answer in answers for _, summed, _ in answer)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_bytes_of_a_text_beside_shared_frames(processes, itemsize):
    call = Attention(3, 7, 3, 16, 24, 2, itemsize)
    answers = processes.run(frames_are_shared_out, call, [2, 1], 5)
    check(answers, scaling.by_frames(call, [2, 1]))
    for (_, forward, _), (_, backward, _) in answers:
        assert (forward, backward) == ([], [scaling.summed_by_frames(call, 5)])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("heads", [4, 3, 1])
@pytest.mark.parametrize("tokens", [(12, 12), (15, 9), (0, 24), (6, 9, 8, 1)])
def test_bytes_of_shared_heads(processes, tokens, heads, text, itemsize):
    call = Attention(3, 8, heads, 16, 24, 2, itemsize)
    answers = processes.run(heads_are_shared_out, call, list(tokens), text, ranks=len(tokens))
    check(answers, scaling.by_heads(call, tokens, text))


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("way", scaling.WAYS)
def test_reads_and_writes_of_torchs_operators(processes, way, ranks):
    """To 5 percent: the counts of scaling.py are whole passes, and leave statistics out."""
    call = Attention(2 * ranks + 1, 48, ranks + 1, 128, 128)
    if way == "frames":
        answers = processes.run(frames_are_shared_out, call, share(call.frames, ranks), 0, ranks=ranks)
    else:
        tokens = share(call.frames * call.positions, ranks)
        answers = processes.run(heads_are_shared_out, call, tokens, 0, ranks=ranks)
    forward, backward = (nbytes for _, _, nbytes in answers[0])
    torch_bytes = scaling.WAYS[way][2]
    assert torch_bytes(call, ranks, False) == pytest.approx(forward, rel=0.05)
    assert torch_bytes(call, ranks, True) == pytest.approx(forward + backward, rel=0.05)


def test_bytes_by_hand():
    """Two iterations, two ranks with two of four frames each, of six positions."""
    call = Attention(4, 6, 5, 8, 8)
    rows, first = 5 * 2 * 3, 5 * 3  # own frames at the other's positions; frame 0 at half of its positions
    query, key, surrogate, weighted, out, row = 16, 16 + 16, 16, 16 + 16 + 16, 16, 16
    sent = rows * (query + key + surrogate + weighted + out) + first * (row + row + 16)
    assert scaling.sent(scaling.by_frames(call, [2, 2]), 2) == [sent, sent]
    assert scaling.sent(scaling.by_heads(call, [12, 12]), 2) == [
        12 * 2 * 3 * 16 + 12 * 3 * 16,
        12 * 3 * 3 * 16 + 12 * 2 * 16,
    ]
    assert scaling.sent(scaling.by_ring(call, [8, 8, 8]), 3) == [2 * 5 * 8 * 32] * 3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_kinds_of_kernels(video, training):
    """Every kind is there, and the spatial steps take most of what the record has."""
    seconds = scaling.kernel_seconds(video.recorded, video.head_dim, training)
    assert 0.5 * sum(seconds.values()) < seconds["spatial"] and min(seconds.values()) >= 0
    assert seconds["first"] > 0.2 * seconds["spatial"] and seconds["temporal"] > 0


@pytest.mark.parametrize("model", ["Wan2.1-T2V-14B", "HunyuanVideo"])
def test_one_gpu_is_near_what_was_recorded_at_that_size(model):
    """Kernel times of another size, scaled, against attention in a block; to 10 percent: HunyuanVideo's has a text."""
    text = (scaling.RECORDS / "bench_swap.txt").read_text()
    milliseconds = float(re.search(rf"^{model}: (?:.*\n)+?attention .*\) +([\d.]+) \(", text, re.MULTILINE)[1])
    (video,) = (v for v in VIDEOS if v.name.split(",")[0] == model.replace("-T2V-", " "))
    assert 1e3 * sum(scaling.one_gpu(video, False).values()) == pytest.approx(milliseconds, rel=0.1)


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_speedup_without_links_is_that_of_the_fullest_rank(video, monkeypatch):
    monkeypatch.setattr(scaling, "copy_rate", lambda: float("inf"))
    for ranks in (2, 8, 64):
        by_heads = scaling.speedup(video, "Ulysses", ranks, float("inf"), 0, True)
        assert by_heads == pytest.approx(video.heads / -(-video.heads // ranks))
        by_frames = scaling.speedup(video, "frames", ranks, float("inf"), 0, True)
        frames = video.grid[0]
        assert by_frames >= 0.999 * frames / -(-frames // ranks)  # temporal steps divide better, as a rule
        assert by_frames <= min(ranks, frames) + 1e-9


def test_page_has_the_table_of_today():
    page = scaling.PAGE.read_text()
    assert scaling.renewed(page) == page, "run: python -m benchmarks.scaling"
    assert scaling.PLOT.stat().st_size <= 60_000


def test_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    scaling.write_plot(Machine(), tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_other_assumptions_are_printed_only(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "PAGE", None)
    assert scaling.main(["--nvlink", "300", "--latency", "40"]) == 0
    text = capsys.readouterr().out
    assert "300 / 50 GB/s one way, 40 us" in text and "no files written" in text
    assert scaling.table(Machine(nvlink=300, latency=40), (2, 4, 8, 16, 32, 64)) in text
