"""The measurements of a run as rows, as a CSV file and as the table in docs/speed.md."""

import csv
from pathlib import Path
from typing import Any

OURS = "frameattn"
BEGIN, END = "<!-- gpu-table:begin -->", "<!-- gpu-table:end -->"
# What binds an operator; the module is bound by products of a library.
COPIES = ("matrix_attention", "temporal_update", "temporal_output", "modulated_layer_norm", "gated_add")
PRODUCTS = ("spatial_middle", "spatial_last", "vmonarch_attention")
# In docs/speed.md; the others are in the CSV file.
SHOWN = ("vmonarch_attention", "matrix_attention", "MatrixAttention")
MACHINE = ("gpu", "torch", "cuda", "driver_version")


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each candidate of each case: what was measured, where, and its share of what this GPU can do."""
    details = results["details"]
    machine, baselines, timings = (details.get(name, {}) for name in ("machine", "baselines", "timings"))
    origin = {
        "commit": results["commit"],
        "started": results["started"],
        **{name: machine.get(name) for name in MACHINE},
    }
    origin["sm_clock"] = baselines.get("clocks_under_load", {}).get("clocks.sm")
    origin["memory_clock"] = baselines.get("clocks_under_load", {}).get("clocks.mem")
    copy, gemm = (baselines.get(name, {}).get("rate") for name in ("copy", "gemm"))
    # Dense attention is in both stages; the later one is side by side with more peers.
    rows = {(*case_of(row), row["candidate"]): row for row in [*baselines.get("rows", []), *timings.get("rows", [])]}
    rows = list(rows.values())
    times = {}
    for row in rows:
        times.setdefault(case_of(row), {})[row["candidate"]] = row["median"]
    complete = []
    for row in rows:
        peers, median = times[case_of(row)], row["median"]
        complete.append(
            {
                **origin,
                **row,
                "bandwidth_share": row["bytes"] / median / copy if copy else None,
                "gemm_share": row["operations"] / median / gemm if gemm else None,
                "speedup_of_ours": median / peers[OURS] if OURS in peers else None,
            }
        )
    return complete


def case_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["operation"], row["shape"], row["dtype"], row["direction"]


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})


def speed_table(rows: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """What users call against each peer, one line for each case."""
    cases: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row["candidate"]] = row
    shown = sorted((case for case in cases if case[0] in SHOWN), key=lambda case: SHOWN.index(case[0]))
    ours = {case: cases[case] for case in shown if OURS in cases[case]}
    peers = list(dict.fromkeys(name for candidates in ours.values() for name in candidates if name != OURS))
    head = ["", "ms (quartiles)", "of copy bandwidth, or TFLOP/s", "peak MiB", *(f"over {name}" for name in peers)]
    lines = [f"{where(rows[0], results)}:", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (operation, shape, dtype, direction), candidates in ours.items():
        row = candidates[OURS]
        speed = [f"{candidates[name]['median'] / row['median']:.2f}x" if name in candidates else "" for name in peers]
        times = f"{1e3 * row['median']:.3f} ({1e3 * row['q1']:.3f} .. {1e3 * row['q3']:.3f})"
        name, memory = f"{operation} {shape}, {dtype}, {direction}", f"{row['peak_bytes'] / 2**20:.0f}"
        lines.append("| " + " | ".join([name, times, rate(row), memory, *speed]) + " |")
    return "\n".join(lines)


def rate(row: dict[str, Any]) -> str:
    if row["operation"] in PRODUCTS:
        return f"{row['operations'] / row['median'] / 1e12:.0f}"
    return f"{row['bandwidth_share']:.0%}" if row["operation"] in COPIES and row["bandwidth_share"] else ""


def where(row: dict[str, Any], results: dict[str, Any]) -> str:
    words = [str(row["gpu"]), f"torch {row['torch']}", f"driver {row['driver_version']}", f"commit {row['commit']}"]
    for name, unit, scale in (("copy", "GB/s copy", 1e9), ("gemm", "TFLOP/s bf16 GEMM", 1e12)):
        if rate := results["details"].get("baselines", {}).get(name, {}).get("rate"):
            words.append(f"{rate / scale:.0f} {unit}")
    return ", ".join(words)


def write_table(table: str, path: Path) -> str:
    """Replaces what is between the markers; says what it did."""
    text = path.read_text() if path.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        return f"{path} has no {BEGIN} ... {END}: its table was not written"
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    return f"wrote the table of {path}"
