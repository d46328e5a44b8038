"""tools/stable_abi_errors.py: its flags forbid torch's other headers and let the stable ones pass."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from stable_abi_errors import UNSTABLE, compile_stable


def test_a_header_outside_of_the_stable_abi_is_named_and_no_other(tmp_path):
    source = tmp_path / "source.cpp"
    source.write_text("#include <torch/headeronly/util/Half.h>\n#include <ATen/core/Tensor.h>\n")
    assert UNSTABLE.findall(compile_stable(source, [])) == ["ATen/core/Tensor.h"]


def test_stable_headers_compile(tmp_path):
    source = tmp_path / "source.cpp"
    source.write_text("#include <torch/csrc/stable/library.h>\nSTABLE_TORCH_LIBRARY(example, m) {}\n")
    assert compile_stable(source, []) == ""
