#!/bin/bash
# ptxas serializes all products (wgmma) of a loop that keeps a group of them in flight from one round to the next, if the
# loop waits for an mbarrier the usual way, until it is complete. With a counter and a trap after 2^32 polls, which nothing
# ever reaches, the same loop keeps its groups. The line about it (C7514) gives another reason, that instructions read
# registers of products in flight; there is none that does.
#
#   package    nvidia-cuda-nvcc 13.0.88 (ptxas of CUDA 13.0), from PyPI; no GPU is needed
#   input      a loop: wait_group 1, exponentials of one product's sums, wait_group 0, a wait for an mbarrier, that product
#              anew, and a product of the exponentials into sums that stay; only the wait for the mbarrier differs
#   seen       endless wait: "(C7514) ... wgmma.mma_async instructions are serialized"; with a trap: no such line; in both no
#              register is spilled
#   expected   the same for both: no product is in flight while the mbarrier is waited for
#
# Exit status 0: the behaviour is as described. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m pip install --quiet --no-deps --target "$folder" nvidia-cuda-nvcc==13.0.88

cat > "$folder/loop.py" <<'PYTHON'
import re
import subprocess
import sys

SUMS = 64  # float32 registers of a thread, of 64 x 128 sums


def product(sums: list[str], left: str, adds: int) -> str:
    major = "" if left.startswith("{") else " 0,"  # of the left side, which only shared memory has
    registers = ", ".join(sums)
    return (
        f"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{registers}}}, {left}, %b, {adds}, 1, 1,{major} 0;"
    )


def program(with_trap: bool) -> str:
    logits, sums = [f"%s{i}" for i in range(SUMS)], [f"%o{i}" for i in range(SUMS)]
    packed = [f"%p{i}" for i in range(SUMS // 2)]
    fence, commit = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
    bounded = ["add.u32 %polls, %polls, 1;", "setp.ne.u32 %more, %polls, 0;", "@%more bra WAIT;", "trap;"]
    return "\n".join(
        [
            ".version 8.0\n.target sm_90a\n.address_size 64",
            ".visible .entry k(.param .u64 out, .param .u64 a, .param .u64 b, .param .u32 n) {",
            f".reg .f32 %s<{SUMS}>, %o<{SUMS}>, %e<{SUMS}>;\n.reg .b32 %p<{SUMS // 2}>, %n, %i, %barrier, %polls;",
            ".reg .b64 %out, %a, %b;\n.reg .pred %done, %more;\n.shared .align 8 .b64 barrier;",
            "ld.param.u64 %out, [out];\nld.param.u64 %a, [a];\nld.param.u64 %b, [b];\nld.param.u32 %n, [n];",
            "mov.u32 %barrier, barrier;\nmov.u32 %i, 0;",
            *(f"mov.f32 {register}, 0f00000000;" for register in (*sums, *logits)),
            *(fence, product(logits, "%a", 0), commit, commit),
            "LOOP:",
            "wgmma.wait_group.sync.aligned 1;",
            *(f"ex2.approx.ftz.f32 %e{i}, {logit};" for i, logit in enumerate(logits)),
            "wgmma.wait_group.sync.aligned 0;",
            *(f"cvt.rn.bf16x2.f32 {two}, %e{2 * i + 1}, %e{2 * i};" for i, two in enumerate(packed)),
            "mov.u32 %polls, 0;",
            "WAIT:",
            "mbarrier.try_wait.parity.shared::cta.b64 %done, [%barrier], %i;\n@%done bra GO;",
            *(bounded if with_trap else ["bra WAIT;"]),
            "GO:",
            *(fence, product(logits, "%a", 0), commit, fence),
            *(product(sums, f"{{{', '.join(packed[i : i + 4])}}}", 1) for i in range(0, len(packed), 4)),
            commit,
            "add.u32 %i, %i, 1;\nsetp.lt.u32 %more, %i, %n;\n@%more bra LOOP;",
            "wgmma.wait_group.sync.aligned 0;",
            *(f"st.global.f32 [%out+{4 * i}], {register};" for i, register in enumerate(sums)),
            "ret;\n}\n",
        ]
    )


folder = sys.argv[1]
ptxas = f"{folder}/nvidia/cu13/bin/ptxas"
version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
found = []
for with_trap in (False, True):
    with open(f"{folder}/k.ptx", "w") as file:
        file.write(program(with_trap))
    command = [ptxas, "-arch=sm_90a", "-O3", "-v", f"{folder}/k.ptx", "-o", f"{folder}/k.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = re.findall(r"C75\d\d", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)[1]
    print(f"ptxas {version}: {'with a trap' if with_trap else 'endless wait'}: {lines or 'no line'}, {spilled} bytes spilled")
    found.append(lines)
sys.exit(found != [["C7514"], []])
PYTHON
chmod +x "$folder"/nvidia/cu13/bin/ptxas
python3 "$folder/loop.py" "$folder"
