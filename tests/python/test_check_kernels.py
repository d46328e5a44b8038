"""tools/check_kernels.py: what it reads out of cubins and out of ptxas's output, and what it lets pass.

Kernels of a few lines are compiled where there is an nvcc: one spills, one has mma and ldmatrix, one has cp.async.
"""

import csv
import importlib.util
import os
import struct
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("check_kernels", ROOT / "tools" / "check_kernels.py")
check_kernels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_kernels)

PTXAS_OUTPUT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z11call_kernelPKfPf' for 'sm_80'
ptxas info    : Function properties for _Z11call_kernelPKfPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 4096 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 2.851 ms
ptxas info    : Function properties for _Z6helperfPKf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z12spill_kernelPKfPf' for 'sm_80'
ptxas info    : Function properties for _Z12spill_kernelPKfPf
    344 bytes stack frame, 376 bytes spill stores, 380 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 344 bytes cumulative stack size, 368 bytes cmem[0]
"""

SPILL = """
__global__ void __launch_bounds__(1024) spill_kernel(const float* x, float* y) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; i++) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; i++) y[i * 1024 + threadIdx.x] = v[i] * v[95 - i] + v[(i * 7) % 96];
}
"""

MMA = """
#include <cstdint>
namespace frameattn {
template <int kProducts>
__global__ void mma_kernel(float* y) {
  __shared__ __align__(16) uint32_t tile[128];
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const uint32_t row = static_cast<uint32_t>(__cvta_generic_to_shared(tile + threadIdx.x * 4));
  uint32_t a[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(row));
  float c[4] = {};
#pragma unroll
  for (int i = 0; i < kProducts; i++)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[0]), "r"(a[1]));
  for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = c[i];
}
template __global__ void mma_kernel<2>(float*);
template __global__ void mma_kernel<6>(float*);
}  // namespace frameattn
"""

COPY = """
#include <cstdint>
__global__ void copy_kernel(const float4* x, float4* y, int bytes) {
  __shared__ float4 tile[256];
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(tile + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(x + threadIdx.x), "r"(bytes));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(x + threadIdx.x));
  asm volatile("cp.async.commit_group;\\ncp.async.wait_group 0;");
  __syncthreads();
  y[threadIdx.x] = tile[255 - threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def nvcc() -> Path:
    with patch.dict(os.environ):  # setup.py sets defaults there
        found = check_kernels.find_nvcc()
    if found is None:
        pytest.skip("nvcc was not found")
    return found


@pytest.fixture
def check(nvcc, tmp_path, monkeypatch, capsys):
    """check(source, option...) compiles kernels and checks them against table.csv: exit status and failures."""
    monkeypatch.setattr(check_kernels, "find_nvcc", lambda: nvcc)

    def run(source: str, *options: str) -> tuple[int, list[str]]:
        file = tmp_path / "kernel.cu"
        file.write_text(source)
        status = check_kernels.main(["--file", str(file), "--table", str(tmp_path / "table.csv"), *options])
        prefix = f"FAILED {file} "
        return status, [
            line.removeprefix(prefix) for line in capsys.readouterr().out.splitlines() if line.startswith(prefix)
        ]

    return run


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "table.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def change(tmp_path: Path, column: str, value: str) -> None:
    table = {tuple(row[name] for name in ("file", "kernel", "arch")): {**row, column: value} for row in rows(tmp_path)}
    check_kernels.write_table(tmp_path / "table.csv", table)


def elf(sections: dict[str, bytes]) -> bytes:
    """A 64-bit ELF file with these sections, and the one that holds their names."""
    sections = {**sections, ".shstrtab": b""}
    names = b"\0".join(name.encode() for name in sections) + b"\0"
    sections[".shstrtab"] = names
    body, headers = b"", b""
    for name, content in sections.items():
        header = (names.index(name.encode()), 1, 0, 0, 64 + len(body), len(content), 0, 0, 0, 0)
        headers += struct.pack("<IIQQQQIIQQ", *header)
        body += content
    counts = (64, 0, 0, 64, len(sections), len(sections) - 1)
    start = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 190, 1, 0, 0, 64 + len(body), 0, *counts)
    return start + body + headers


def instructions(*opcodes: int) -> bytes:
    """Machine code with these low 12 bits; all others are set, and must not matter."""
    return b"".join(struct.pack("<QQ", opcode | 0xFFFF_FFFF_FFFF_F000, 0xFFFF_FFFF_FFFF_FFFF) for opcode in opcodes)


def test_kernels_and_instructions_of_a_cubin():
    cubin = elf(
        {
            "": b"",
            ".nv.info.first": b"x" * 5,
            ".text.first": instructions(0x23C, 0x83B, 0x23C, 0xFAE, 0x918),
            ".text.second": instructions(0x387, 0x987, 0x983, 0x981, 0x986, 0x308),  # 0x387 and 0x987 are both STL
        }
    )
    kernels = {name: +check_kernels.count_instructions(code) for name, code in check_kernels.read_kernels(cubin)}
    assert kernels == {
        "first": {"HMMA": 2, "LDSM": 1, "LDGSTS": 1},
        "second": {"STL": 2, "LDL": 1, "LDG": 1, "STG": 1, "MUFU": 1},
    }
    with pytest.raises(ValueError, match="not a 64-bit ELF file"):
        list(check_kernels.read_kernels(b"no cubin"))


def test_exponentials_beside_products_are_those_between_their_two_waits():
    wait, exp2 = (0x8000_0000_79C5, 0xFE4_0000_0100_00), (0x8000_0006_7308, 0x2_A600_0000_0800)
    wait_but_one, log2 = (wait[0], wait[1] | 0x100), (exp2[0], 0x2_A600_0000_0C00)
    fence = (0x79C5, 0xFE2_0000_0000_00)  # of the same kind as the waits

    def count(*code):
        return check_kernels.count_beside_products(code)

    assert count(exp2, wait_but_one, fence, exp2, log2, exp2, wait, exp2) == 2
    assert count(wait_but_one, wait, exp2, exp2) == 0  # what the compiler makes of it if nothing holds the wait
    assert count(exp2, exp2, wait) == 0
    assert count(wait_but_one, exp2, wait, wait_but_one, exp2, exp2, wait) == 3
    assert count(wait_but_one, exp2) == 0  # never waited for all


def test_resources_that_ptxas_names():
    kernels = check_kernels.parse_ptxas(PTXAS_OUTPUT, "sm_80")
    assert check_kernels.parse_ptxas(PTXAS_OUTPUT, "sm_90a") == {}
    assert kernels == {
        "_Z11call_kernelPKfPf": check_kernels.Resources(registers=18, shared=4096, stack=8),  # 8: of its helper
        "_Z12spill_kernelPKfPf": check_kernels.Resources(64, 0, stack=344, spill_stores=376, spill_loads=380),
    }


def test_complaints_of_the_compiler():
    bad = [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count.",
        "ptxas info    : (C7506) Potential Performance Loss: 'setmaxnreg' ignored to maintain compatibility.",
        "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to it",
        "kernel.cu(1): warning #177-D: variable was declared but never referenced",
    ]
    fine = "ptxas info    : Compiling entry function '_Z18warning_serializedPf' for 'sm_80'\n"
    assert check_kernels.complaints(PTXAS_OUTPUT + "\n".join([bad[0], fine, *bad[1:]])) == bad


@pytest.mark.parametrize(
    "demangled, short",
    [
        ("plain_kernel(float*)", "plain_kernel"),
        ("void frameattn::k<__nv_bfloat16, 128, true>(frameattn::Params)", "k<__nv_bfloat16, 128, true>"),
        ("void frameattn::k<frameattn::a::Tile<64>, (frameattn::Value)1>(int)", "k<Tile<64>, (Value)1>"),
        ("void frameattn::(anonymous namespace)::k<float>(float, void (*)(int))", "k<float>"),
    ],
)
def test_short_names(demangled, short):
    assert check_kernels.short_name(demangled) == short


def test_a_spill_fails_unless_the_table_gives_a_reason(check, tmp_path):
    status, failures = check(SPILL, "--arch", "sm_80,sm_120", "--update")
    assert status == 1
    for arch in ("sm_80", "sm_120"):
        found = [failure.split(": expected 0")[0] for failure in failures if f" {arch}: " in failure]
        assert found == [
            f"spill_kernel {arch}: {what}" for what in ("stack", "spill stores", "spill loads", "LDL", "STL")
        ]
    change(tmp_path, "local_memory_allowed", "600 bytes: it is small")
    assert check(SPILL, "--arch", "sm_80,sm_120", "--update") == (0, [])  # which keeps the reason
    assert {row["local_memory_allowed"] for row in rows(tmp_path)} == {"600 bytes: it is small"}
    change(tmp_path, "local_memory_allowed", "100 bytes: it is small")
    assert "spill_kernel sm_80: stack: expected 100 bytes, found" in " ".join(check(SPILL, "--arch", "sm_80")[1])
    change(tmp_path, "local_memory_allowed", "because")
    assert 'found "because"' in check(SPILL, "--arch", "sm_80")[1][0]


def test_tensor_core_instructions_are_counted_and_compared(check, tmp_path):
    status, failures = check(MMA, "--arch", "sm_80")
    assert status == 1
    assert failures == [f"mma_kernel<{n}> sm_80: not in the table; --update adds it" for n in (2, 6)]
    assert check(MMA, "--update") == (0, [])
    assert [(row["kernel"], row["arch"], row["HMMA"], row["LDSM"], row["LDGSTS"]) for row in rows(tmp_path)] == [
        (f"mma_kernel<{n}>", arch, str(n), "1", "0") for n in (2, 6) for arch in ("sm_80", "sm_90a", "sm_120")
    ]
    assert {row["shared"] for row in rows(tmp_path)} == {"512"}
    assert check(MMA) == (0, [])

    fewer = MMA.replace("mma_kernel<6>", "mma_kernel<5>").replace("i < kProducts", "i < (kProducts == 2 ? 3 : 5)")
    status, failures = check(fewer, "--arch", "sm_80")
    assert status == 1
    assert failures == [
        "mma_kernel<2> sm_80: HMMA: expected 2, found 3",
        "mma_kernel<5> sm_80: not in the table; --update adds it",
        "mma_kernel<6> sm_80: in the table, but not in the file; --update drops it",
    ]
    assert check(fewer, "--arch", "sm_80", "--update") == (0, [])  # and leaves the other architectures alone
    assert [(row["kernel"], row["HMMA"]) for row in rows(tmp_path) if row["arch"] == "sm_120"] == [
        ("mma_kernel<2>", "2"),
        ("mma_kernel<6>", "6"),
    ]


def test_registers_may_grow_a_little(check, tmp_path):
    assert check(COPY, "--arch", "sm_80", "--update") == (0, [])
    (row,) = rows(tmp_path)
    assert (row["HMMA"], row["LDSM"], row["LDGSTS"], row["shared"]) == ("0", "0", "2", "4096")
    registers = int(row["registers"])
    change(tmp_path, "registers", str(registers - 8))
    assert check(COPY, "--arch", "sm_80") == (0, [])
    change(tmp_path, "registers", str(registers - 9))
    expected = f"registers: expected {registers - 9}, or up to 8 more, found {registers}"
    assert check(COPY, "--arch", "sm_80") == (1, [f"copy_kernel sm_80: {expected}"])


def test_warnings_fail_and_a_file_without_kernels_does(check):
    status, failures = check("__global__ void kernel(float* y) { int unused = 3; *y = 1; }", "--arch", "compute_80")
    assert status == 1
    assert failures == ["- compute_80: nvcc failed"]
    for arch in ("sm_80", "compute_80"):
        assert check("void no_kernel() {}", "--arch", arch) == (1, [f"- {arch}: no kernel came out"])


def test_what_a_build_left_is_checked_alike(check, nvcc, tmp_path):
    """All architectures at once, as a build compiles. What other programs say is none of its business."""
    assert check(MMA, "--update") == (0, [])
    kept = tmp_path / "kept"
    kept.mkdir()
    targets = [("80", "sm_80"), ("80", "compute_80"), ("90a", "sm_90a"), ("120", "sm_120")]
    flags = [x for of, code in targets for x in ("-gencode", f"arch=compute_{of},code={code}")]
    command = [
        nvcc,
        "-c",
        "-O3",
        *check_kernels.COMMON_NVCC_FLAGS,
        *check_kernels.BUILT_WITH.split(),
        "--keep-dir",
        kept,
        *flags,
    ]
    output = subprocess.run([*command, tmp_path / "kernel.cu", "-o", kept / "o"], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    (kept / "log").write_text(f"others say: warning\n{output.stdout}{output.stderr}")
    assert check(MMA, "--built", str(kept)) == (0, [])

    change(tmp_path, "HMMA", "7")
    status, failures = check(MMA, "--built", str(kept))
    assert status == 1 and "mma_kernel<2> sm_90a: HMMA: expected 7, found 2" in failures
    with (kept / "log").open("a") as log:
        log.write("ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized\n")
    (kept / "kernel.compute_120.cubin").unlink()
    failures = check(MMA, "--built", str(kept))[1]
    assert any("instructions are serialized" in line for line in failures)
    assert any("- sm_120: the build left nothing" in line for line in failures)


def test_nvcc_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(check_kernels, "find_nvcc", lambda: None)
    assert check_kernels.main([]) == 2
    assert "nvcc was not found" in capsys.readouterr().err
