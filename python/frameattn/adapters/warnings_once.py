"""Warnings that come once for each message."""

import warnings

import torch


class Warnings:
    """Plain data, to be copied and pickled with its owner."""

    def __init__(self, source: str):
        self.source = source
        self.messages: list[str] = []

    @torch.compiler.assume_constant_result  # a compiler runs it while it traces, so that it breaks no graph
    def warn(self, message: str) -> None:
        if message not in self.messages:
            self.messages.append(message)
            warnings.warn(f"frameattn.adapters, {self.source}: {message}", stacklevel=2)
