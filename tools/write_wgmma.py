"""Write csrc/shared/kernels/wgmma_sm90.cuh: wgmma in the sizes that the kernels use.

  python tools/write_wgmma.py

An asm statement names each of its registers, some hundred of them, and a template cannot count them out.
"""

from pathlib import Path

FILE = Path(__file__).parents[1] / "csrc" / "shared" / "kernels" / "wgmma_sm90.cuh"
FROM_SHARED = (64, 80, 96, 112, 128, 160, 192)  # columns of the products whose left side is in shared memory: logits
FROM_REGISTERS = (64, 96, 128, 256)  # ... in registers: weighted rows, logits of rows that stay
TYPES = {"bfloat16": "bf16", "float16": "f16"}

HEAD = """\
// wgmma of 64 x columns x 16: multiply_async, multiply_add_async of ptx_sm90_cuda.h. Written by tools/write_wgmma.py.
// clang-format off
"""


def function(columns: int, left: str, adds: bool) -> str:
    """multiply_add_async or multiply_async for one number of columns, with its left side in shared memory or registers.

    Sums that are not added to are outputs alone: else the compiler keeps what they held alive until then.
    """
    sums = columns // 2
    places = ", ".join(f"%{i}" for i in range(sums))
    outputs = ", ".join(f'"{"+" if adds else "="}f"(c[{i}])' for i in range(sums))
    if left == "shared":
        kind, a, inputs = "uint64_t", f"%{sums}", '"l"(a)'
    else:
        kind, a = "const uint32_t*", "{" + ", ".join(f"%{sums + i}" for i in range(4)) + "}"
        inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    b = sums + (1 if left == "shared" else 4)
    # Of the flags 1 and 1 are signs; a's major, which only shared memory has, is 0.
    flags = f"1, 1, {'0, ' if left == 'shared' else ''}%{b + 2 if adds else b + 1}"
    product = " wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{short}.{short}"
    lines = [
        "template <frameattn::FrameElement element, int columns, bool transposed>",
        f"  requires(columns == {columns})",
        f"__device__ __forceinline__ void multiply_{'add_' if adds else ''}async(float (&c)[columns / 2], {kind} a,"
        f" uint64_t b{', bool accumulate' if adds else ''}) {{",
    ]
    for element, short in TYPES.items():
        lines += [f"  if constexpr (element == frameattn::FrameElement::{element})"]
        if adds:
            lines += [
                f'    asm volatile("{{.reg .pred accumulate; setp.ne.b32 accumulate, %{b + 1}, 0;"',
                f'                 "{product.format(columns=columns, short=short)}"',
                f'                 " {{{places}}}, {a}, %{b}, accumulate, {flags};}}"',
                f"                 : {outputs}",
                f'                 : {inputs}, "l"(b), "r"(static_cast<int>(accumulate)), "n"(transposed));',
            ]
        else:
            lines += [
                f'    asm volatile("{product.format(columns=columns, short=short).strip()}"',
                f'                 " {{{places}}}, {a}, %{b}, 0, {flags};"',
                f"                 : {outputs}",
                f'                 : {inputs}, "l"(b), "n"(transposed));',
            ]
    return "\n".join([*lines, "}"])


def text() -> str:
    functions = [function(columns, "shared", adds) for columns in FROM_SHARED for adds in (True, False)]
    functions += [function(columns, "registers", adds) for columns in FROM_REGISTERS for adds in (True, False)]
    return HEAD + "\nnamespace ptx {\n\n" + "\n\n".join(functions) + "\n\n}  // namespace ptx\n"


if __name__ == "__main__":
    FILE.write_text(text())
