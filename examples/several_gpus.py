"""VMonarch attention by several processes: of one video by frames and by heads, and in a swapped model of diffusers.

docs/several_gpus.md says which to take. One process for each GPU, or without GPUs on CPU. The model, a small Wan with
random weights, needs diffusers and transformers; every process has all of its weights.

    torchrun --nproc_per_node 2 examples/several_gpus.py
"""

import argparse

import torch
import torch.distributed as dist
from torch import Tensor

import frameattn

S, HEADS, DIM = 6 * 10, 4, 32  # tokens in a frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=9)
    frames = parser.parse_args().frames

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(dist.get_node_local_rank())
    device = torch.device("cuda" if on_gpu else "cpu")

    torch.manual_seed(0)  # the same video everywhere, to compare with; in a real program nobody has all of it
    video = [torch.randn(1, HEADS, frames * S, DIM, device=device) for _ in range(3)]  # query, key, value
    expected = frameattn.vmonarch_attention(*video, frames)

    counts = frameattn.parallel.share(frames, dist.get_world_size())  # the first processes have one frame more
    tokens = [count * S for count in counts]
    rank = dist.get_rank()
    query, key, value = (x.split(tokens, dim=2)[rank].clone().requires_grad_() for x in video)

    by_frames = frameattn.parallel.vmonarch_attention(query, key, value, frames, frames_per_rank=counts)
    report("by frames", by_frames, expected.split(tokens, dim=2)[rank])

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # all tokens of some heads
        return frameattn.vmonarch_attention(query, key, value, frames)

    by_heads = frameattn.parallel.ulysses(query, key, value, attention, tokens_per_rank=tokens)
    report("by heads ", by_heads, expected.split(tokens, dim=2)[rank])
    by_heads.square().sum().backward()  # every process together, as forward

    run_model(device)
    dist.destroy_process_group()


def run_model(device: torch.device) -> None:
    try:
        import transformers  # noqa: F401  diffusers warns by a logger that this adds to
        from diffusers import ContextParallelConfig, WanTransformer3DModel
    except ImportError:
        return
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=4, attention_head_dim=24, num_layers=2, ffn_dim=64)
    model = WanTransformer3DModel(**sizes, in_channels=4, out_channels=4, text_dim=16, freq_dim=32).to(device).eval()
    latent, text = torch.randn(1, 4, 5, 8, 12, device=device), torch.randn(1, 7, 16, device=device)
    arguments = dict(encoder_hidden_states=text, timestep=torch.tensor([500], device=device), return_dict=False)

    handle = frameattn.adapters.apply(model)
    with torch.no_grad():
        (expected,) = model(latent, **arguments)
        if device.type == "cpu":  # diffusers divides the rank by how many there are
            torch.accelerator.device_count = dist.get_world_size
        uneven = {} if 5 * 4 * 6 % dist.get_world_size() == 0 else {"ulysses_anything": True}  # from diffusers 0.38 on
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size(), **uneven))
        (together,) = model(latent, **arguments)
    report("the model", together, expected)
    if dist.get_rank() == 0:
        print(handle.report())


def report(what: str, actual: Tensor, expected: Tensor) -> None:
    error = torch.zeros((), device=actual.device)
    if actual.numel():
        error = (actual.detach() - expected).abs().max() / expected.abs().max()
    dist.all_reduce(error, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print(f"{what}, {dist.get_world_size()} processes: {error.item():.0e} from one process")


if __name__ == "__main__":
    main()
