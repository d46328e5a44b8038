"""Runs each kernel, at the sizes that are timed: the program that Nsight Compute looks into."""

import torch

from benchmarks.gpu_check import matrix, modulation, temporal, vmonarch
from benchmarks.gpu_check.cases import OURS, only


def main() -> None:
    device = torch.device("cuda")
    for build, shape in (
        (matrix.core, matrix.SHAPES[0]),
        (temporal.update, temporal.SHAPES[0]),
        (temporal.output, temporal.SHAPES[0]),
        (modulation.norm, modulation.SHAPES[0]),
        (modulation.gate, modulation.SHAPES[0]),
        (vmonarch.attention, vmonarch.SHAPES[0]),
    ):
        problem = only(build(shape, torch.bfloat16, device), [OURS])
        output = problem.candidates[OURS]()
        torch.autograd.grad(output, list(problem.inputs.values()), torch.randn_like(output))
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
