"""csrc/trust/trusted_kernels.inc: which kernel of which version passed its checks on which capability and dtype.

    {"frame_attention_forward_sm80", 1, 90, "bfloat16"},

A kernel is trusted for a dtype if both stages `elements` and `tests` say that it passed, and no stage that it failed.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import NEEDED

LINE = re.compile(r'\s*\{"(\w+)", (\d+), (\d+), "(\w+)"\},\s*')
HEADER = (
    "// Kernels that passed their checks on a GPU: name, version, compute capability, dtype. Written by gpu-report.\n"
    "// clang-format off\n"
)


def missing(results: dict[str, Any], versions: dict[str, int]) -> list[str]:
    """Why kernels are not trusted. versions: of the checkout."""
    return [
        f"{kernel}, version {version} ran, this checkout has {versions.get(kernel, 'no such kernel')}"
        for kernel, version in results["kernel_versions"].items()
        if not is_current(results, kernel, versions)
    ] + [
        f"{kernel}, {dtype}: " + ", ".join(f"{stage} {status}" for stage, status in stages.items())
        for kernel, dtype, stages in verdicts(results)
        if is_current(results, kernel, versions) and not passed(stages)
    ]


def trusted_lines(results: dict[str, Any], versions: dict[str, int]) -> list[str]:
    capability = results["details"]["machine"]["capability"]
    return [
        f'{{"{kernel}", {versions[kernel]}, {capability}, "{dtype}"}},'
        for kernel, dtype, stages in verdicts(results)
        if is_current(results, kernel, versions) and passed(stages)
    ]


def verdicts(results: dict[str, Any]) -> list[tuple[str, str, dict[str, str]]]:
    return [(kernel, dtype, s) for kernel, dtypes in results["kernels"].items() for dtype, s in dtypes.items()]


def is_current(results: dict[str, Any], kernel: str, versions: dict[str, int]) -> bool:
    return results["kernel_versions"].get(kernel) == versions.get(kernel)


def passed(stages: dict[str, str]) -> bool:
    return all(stages.get(stage) == "passed" for stage in NEEDED) and "failed" not in stages.values()


def update(path: Path, lines: list[str], versions: dict[str, int]) -> bool:
    """Adds the lines; those of other versions say nothing of this one and go. True if the file changed."""
    text = path.read_text() if path.exists() else HEADER
    comments, entries = [], set(lines)
    for line in text.splitlines():
        entry = LINE.fullmatch(line)
        if not entry:
            comments.append(line)
        elif int(entry[2]) == versions.get(entry[1]):
            entries.add(line.strip())
    new = "\n".join([*comments, *sorted(entries)]) + "\n"
    if new != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new)
    return new != text
