"""Stage: the public operators against formulas in float64: outputs, with and without autograd, and all gradients.

It shares nothing with tests/python/cuda and frameattn.reference, which may have a fault in common with the operators.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import KERNEL_DTYPES, by_kernel, kernels_behind, parse_stage
from benchmarks.gpu_check.operator_checks import CHECKS, Check

# Of an output and of a gradient, relative to its largest element: in 16 bits three times what the emulated kernels err
# at most, else ten and more times what the CPU's operators do.
TOLERANCES = {
    "bfloat16": (1.5e-2, 2.5e-2),
    "float16": (2e-3, 4e-3),
    "float32": (1e-5, 2e-5),
    "float64": (1e-12, 1e-12),
}


def checks(quick: bool) -> list[Check]:
    chosen = {check.operation: check for check in reversed(CHECKS)}.values() if quick else CHECKS
    return [replace(check, dtype=dtype) for check in chosen for dtype in TOLERANCES]


@dataclass(frozen=True)
class Errors:
    outputs: dict[str, float]
    gradients: dict[str, float]

    def passed(self, dtype: str) -> tuple[bool, bool]:
        """Outputs and gradients. NaN passes nowhere."""
        by_kind = zip((self.outputs, self.gradients), TOLERANCES[dtype], strict=True)
        return tuple(all(error <= tolerance for error in errors.values()) for errors, tolerance in by_kind)

    def __str__(self) -> str:
        gradients = {f"grad_{name}": error for name, error in self.gradients.items()}
        return " ".join(f"{name}={error:.1e}" for name, error in (self.outputs | gradients).items())


def measure(check: Check, device: torch.device) -> Errors:
    inputs, operator = check.inputs(device), check.operator
    if check.compiled:
        torch._dynamo.reset()
        operator = torch.compile(operator, fullgraph=True)
    exact_inputs = {name: x if x.dtype == torch.bool else x.double() for name, x in inputs.items()}
    exact, exact_gradients = differentiate(check.formula, exact_inputs, check.dtype)

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(exact, operator(tensors), strict=True))

    outputs, gradients = differentiate(run, inputs, check.dtype)
    with torch.no_grad():
        alone = run(inputs)
    return Errors(
        {name: relative_error(outputs[name], exact[name]) for name in exact}
        | {f"{name}_without_autograd": relative_error(alone[name], exact[name]) for name in exact},
        {name: relative_error(gradients[name], exact_gradients[name]) for name in exact_gradients},
    )


def differentiate(
    run: Callable[[dict[str, Tensor]], dict[str, Tensor]], inputs: dict[str, Tensor], dtype: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outputs, and the gradients of the inputs for gradients of the outputs that are the same numbers each time."""
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    outputs = run(leaves)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    differentiable, source = [x for x in outputs.values() if x.requires_grad], torch.Generator().manual_seed(1)
    given = [torch.randn(x.shape, generator=source).to(getattr(torch, dtype)).to(x) for x in differentiable]
    gradients = torch.autograd.grad(differentiable, list(wanted.values()), given, materialize_grads=True)
    return {name: x.detach() for name, x in outputs.items()}, dict(zip(wanted, gradients, strict=True))


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Relative to the largest element; of what is zero the error itself."""
    if actual.shape != exact.shape:
        raise ValueError(f"a result of {tuple(actual.shape)} instead of {tuple(exact.shape)}")
    return float((actual.double() - exact).abs().max() / (exact.abs().max() or 1))


def run_check(check: Check, device: torch.device) -> dict[str, Any]:
    start = time.monotonic()
    about = {"check": str(check), "operation": check.operation, "dtype": check.dtype}
    try:
        errors = measure(check, device)
    except Exception as error:  # the next check may work; an unusable device makes them all fail
        about |= {"passed": (False, False), "errors": f"{type(error).__name__}: {error}"[:500]}
    else:
        about |= {"passed": errors.passed(check.dtype), "errors": str(errors)}
    print(f"{check}: {'' if all(about['passed']) else 'FAILED '}{about['errors']}", flush=True)
    return {**about, "seconds": time.monotonic() - start}


def judgements(done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each check says of the kernels that its outputs come from, and of those of its gradients."""
    return [
        {"kernels": kernels_behind(check["operation"], of_gradients), "dtype": check["dtype"], "passed": passed}
        for check in done
        if check["dtype"] in KERNEL_DTYPES
        for of_gradients, passed in zip((False, True), check["passed"], strict=True)
    ]


def main() -> int:
    options, record = parse_stage(__doc__)
    if not options.dry_run and not torch.cuda.is_available():
        return record.skip(f"torch {torch.__version__} sees no CUDA device")
    device = torch.device("cpu" if options.dry_run else "cuda")
    done: list[dict[str, Any]] = []
    for check in checks(options.quick or options.dry_run):
        done.append(run_check(check, device))
        # Before the last check only failures: what was not checked is not said to pass.
        record.save(checks=done, kernels=by_kernel(j for j in judgements(done) if not j["passed"]))
    record.save(kernels={} if options.dry_run else by_kernel(judgements(done)))
    if failed := [check["check"] for check in done if not all(check["passed"])]:
        record.save(failed=f"{len(failed)} of {len(done)} checks failed: {', '.join(failed[:3])}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
