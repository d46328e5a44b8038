"""All problems, and the parameters that the tests of all of them share."""

import pytest
import torch
from flash_problems import FLASH_PROBLEMS
from frame_problems import FRAME_PROBLEMS
from modulation_problems import MODULATION_PROBLEMS

from oracle import DTYPES

PROBLEMS = (*FRAME_PROBLEMS, *FLASH_PROBLEMS, *MODULATION_PROBLEMS)
WITH_KERNELS = [problem for problem in PROBLEMS if problem.kernels]
# One; fewer and more than a tile of 16, a multiple, one more; primes and what is no multiple of 8. More than a frame
# kernel takes, by blocks: temporal_update's gradient has them from 65 on, the others from 129.
SIZES = (1, 7, 16, 17, 33, 64, 100, 129, 257)


def each(problems):
    return pytest.mark.parametrize(
        "problem", [pytest.param(p, id=p.name, marks=pytest.mark.kernels(*p.kernels)) for p in problems]
    )


each_problem = each(PROBLEMS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_kernel_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
