"""`python -m benchmarks.gpu_check`: build, check, time and record everything on a machine with an NVIDIA GPU.

Each stage is a module of this package and runs in a process of its own: a crash, a hang or a machine that refuses a
tool ends one stage, not the run. What the stages have in common is here; this file and the modules that the parent
process imports (stages, processes, provenance, results) need the standard library alone: torch may be what fails.

A stage says how it went by its exit status and a JSON object, which it writes again after each step: what was measured
before a time limit is kept.
"""

import argparse
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EMULATOR_PROGRAM = ROOT / "build" / "emulator" / "kernels"
DEVICE_PROGRAM = ROOT / "build" / "device" / "kernels"

# What trust is given to, kernel by kernel and dtype by dtype.
KERNELS = (
    "frame_attention_forward_sm80", "frame_attention_backward_sm80",
    "frame_update_forward_sm80", "frame_update_backward_sm80",
    "flash_forward_sm80", "flash_backward_sm80", "flash_offset_sm80", "flash_join_sm80", "flash_sum_sm80",
    "flash_forward_sm90", "flash_backward_sm90",
    "modulation_norm_forward_sm80", "modulation_norm_backward_sm80",
    "modulation_gate_forward_sm80", "modulation_gate_backward_sm80",
)  # fmt: skip
KERNEL_DTYPES = ("bfloat16", "float16")
# A kernel is trusted if it passed in the first two; a failure in any of them keeps it from that.
NEEDED, JUDGES = ("elements", "tests"), ("elements", "tests", "operators", "sanitizer", "timings")

# By what is computed: the families of the kernels that do it.
FAMILIES = {
    "matrix_attention": ("frame_attention",),
    "MatrixAttention": ("frame_attention",),
    "temporal_output": ("frame_attention",),
    "temporal_update": ("frame_update",),
    "spatial_step": ("flash",),
    "spatial_middle": ("flash",),
    "spatial_last": ("flash",),
    "vmonarch_attention": ("frame_attention", "frame_update", "flash"),
    "modulated_layer_norm": ("modulation_norm",),
    "gated_add": ("modulation_gate",),
}


def kernels_behind(operation: str, of_gradients: bool) -> list[str]:
    """Those that its outputs come from, or its gradients."""
    own = [kernel for kernel in KERNELS if kernel.startswith(FAMILIES.get(operation, ("none",)))]
    return [kernel for kernel in own if bool(re.search("backward|offset|sum", kernel)) == of_gradients]


@dataclass
class Record:
    """The JSON object of a stage."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def save(self, **values: Any) -> None:
        self.values.update(values)
        part = self.path.with_suffix(".part")  # renamed when complete: the stage may be killed at any time
        part.write_text(json.dumps(self.values, indent=1))
        os.replace(part, self.path)

    def skip(self, reason: str) -> int:
        """The exit status of a stage that this machine cannot run."""
        self.save(skipped=reason)
        print(f"skipped: {reason}", flush=True)
        return 0


def parse_stage(about: str, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Record]:
    """What every stage is called with: --json FILE [--quick] [--dry-run]."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--dry-run", action="store_true", help="print commands; do only what needs no GPU")
    options = parser.parse_args(arguments)
    return options, Record(options.json)


def by_kernel(checks: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """kernel -> dtype -> passed (every check of it) or failed, from the `kernels`, `dtype` and `passed` of checks."""
    verdicts: dict[str, dict[str, str]] = {}
    for check in checks:
        for kernel in check["kernels"]:
            of_kernel = verdicts.setdefault(kernel, {})
            if of_kernel.get(check["dtype"]) != "failed":
                of_kernel[check["dtype"]] = "passed" if check["passed"] else "failed"
    return verdicts


def show(command: Sequence[object]) -> list[str]:
    """The command in words, printed as one can type it."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    return words
