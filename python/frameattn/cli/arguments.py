"""Types of command line arguments that several commands share: argparse reports what they raise."""

import argparse
import math
import re

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def positive_number(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of more than 0, got {text}")
    return number


def grid(text: str) -> tuple[int, int, int]:
    """``16x28x52``: tokens in time, height and width."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be tokens in time, height and width, such as 16x28x52, got {text!r}")
    t, h, w = map(int, text.split("x"))
    return t, h, w
