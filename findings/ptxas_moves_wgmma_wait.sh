#!/bin/bash
# ptxas moves `wgmma.wait_group 0` above arithmetic that precedes it in PTX and needs none of its registers. Exponentials
# that were written to run beside the last group of products then run after it: the result is right, the overlap is gone,
# and nothing is said (no C75xx line, no warning).
#
#   package    nvidia-cuda-nvcc 13.0.88 (ptxas of CUDA 13.0), from PyPI; no GPU is needed
#   input      two groups of products; wait_group 1; 64 exponentials of the first group's sums; wait_group 0; stores
#   seen       machine code for sm_90a with 1 exponential between the waits and 63 after the second one
#   expected   the order of the PTX, 64 and 0, as wgmma.wait_group is there to say when the program waits
#
# Exit status 0: the behaviour is as described. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m pip install --quiet --no-deps --target "$folder" nvidia-cuda-nvcc==13.0.88

cat > "$folder/count.py" <<'PYTHON'
import struct
import subprocess
import sys

LOGITS, SUMS = 64, 32  # float32 registers of a thread, of 64 x 128 and of 64 x 64 sums


def product(columns: int, registers: list[str]) -> str:
    sums = ", ".join(registers)
    return (
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}}, %a, %b, 1, 1, 1, 0, 0;\n"
        "wgmma.commit_group.sync.aligned;"
    )


def program() -> str:
    logits, sums = [f"%s{i}" for i in range(LOGITS)], [f"%o{i}" for i in range(SUMS)]
    return "\n".join(
        [
            ".version 8.0\n.target sm_90a\n.address_size 64",
            ".visible .entry k(.param .u64 out, .param .u64 a, .param .u64 b) {",
            f".reg .f32 %s<{LOGITS}>, %o<{SUMS}>, %power, %total;\n.reg .b64 %out, %a, %b;",
            "ld.param.u64 %out, [out];\nld.param.u64 %a, [a];\nld.param.u64 %b, [b];",
            *(f"mov.f32 {register}, 0f00000000;" for register in (*logits, *sums, "%total")),
            "wgmma.fence.sync.aligned;",
            product(128, logits),
            product(64, sums),
            "wgmma.wait_group.sync.aligned 1;",
            *(f"ex2.approx.ftz.f32 %power, {logit};\nadd.f32 %total, %total, %power;" for logit in logits),
            "wgmma.wait_group.sync.aligned 0;",
            *(f"st.global.f32 [%out+{4 * i}], {register};" for i, register in enumerate((*sums, "%total"))),
            "ret;\n}\n",
        ]
    )


def machine_code(cubin: bytes) -> bytes:
    """The section .text.k of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if cubin[start : cubin.index(b"\0", start)] == b".text.k":
            return cubin[offset : offset + length]
    raise SystemExit("no machine code")


def exponentials(code: bytes) -> list[int]:
    """How many there are before the first wait, between the waits, and after the second."""
    counts = [0]
    for low, high in struct.iter_unpack("<QQ", code):
        if low & 0x1FF == 0x1C5 and low >> 47 & 1:  # WARPGROUP.DEPBAR
            counts.append(0)
        counts[-1] += low & 0x1FF == 0x108 and high >> 8 & 0x3F == 8  # MUFU.EX2
    return counts


folder = sys.argv[1]
with open(f"{folder}/k.ptx", "w") as file:
    file.write(program())
ptxas = f"{folder}/nvidia/cu13/bin/ptxas"
version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
command = [ptxas, "-arch=sm_90a", "-O3", "-v", f"{folder}/k.ptx", "-o", f"{folder}/k.cubin"]
said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
with open(f"{folder}/k.cubin", "rb") as file:
    counts = exponentials(machine_code(file.read()))
print(f"ptxas {version}: exponentials before, between and after the waits: {counts}; in PTX: [0, {LOGITS}, 0]")
print("a word of it" if "C75" in said or "warning" in said else "no word of it")
sys.exit(counts != [0, 1, 63] or "C75" in said)
PYTHON
chmod +x "$folder"/nvidia/cu13/bin/ptxas
python3 "$folder/count.py" "$folder"
