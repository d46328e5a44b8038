"""What setup.py decides before anything is compiled, and that its list of sources is complete."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from unittest.mock import patch

import pytest
import torch
from setuptools import Distribution
from setuptools.command.build_ext import build_ext
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "FRAMEATTN_CUDA",
    "FRAMEATTN_DEBUG",
    "FRAMEATTN_NAMESPACE",
    "CUDA_HOME",
    "CUDA_PATH",
    "TORCH_CUDA_ARCH_LIST",
)


@pytest.fixture
def setup(monkeypatch) -> Callable[..., dict]:
    """run(cuda, VARIABLE=...) imports setup.py, which builds nothing then, under a torch with this version of CUDA."""
    with patch.dict(os.environ):  # setup.py sets defaults there
        for name in VARIABLES:
            os.environ.pop(name, None)

        def run(cuda: str | None, **environment: object) -> dict:
            monkeypatch.setattr(torch.version, "cuda", cuda)
            os.environ.update({name: str(value) for name, value in environment.items()})
            return run_path(str(ROOT / "setup.py"))

        yield run


@pytest.fixture
def toolkit(tmp_path) -> Path:
    """A CUDA toolkit whose nvcc says no more than where it is."""
    script(tmp_path / "toolkit" / "bin" / "nvcc", f"echo '#$ TOP={tmp_path}/toolkit/bin/..' >&2")
    return tmp_path / "toolkit"


def script(path: Path, command: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path


def test_a_cpu_torch_gives_a_cpu_build(setup, toolkit):
    values = setup(None, CUDA_HOME=toolkit)
    assert values["TOOLKIT"] is None
    assert values["CUDA"] == "no: the installed torch is a CPU build"
    extension = values["extension"]()
    assert all(source.endswith(".cpp") for source in extension.sources)
    assert "csrc/units/cuda.cpp" not in extension.sources
    assert ("FRAMEATTN_CUDA", '"no: the installed torch is a CPU build"') in extension.define_macros


def test_a_cuda_torch_with_a_toolkit_gives_a_cuda_build(setup, toolkit):
    values = setup("13.0", CUDA_HOME=toolkit)
    assert values["TOOLKIT"] == toolkit
    assert values["CUDA"] == f"13.0 (toolkit {toolkit})"
    assert any(source.endswith(".cu") for source in values["read_sources"]("cuda"))


@pytest.mark.parametrize(
    "release, cuda", [("12.4", "no: nvcc is of CUDA 12.4, torch of CUDA 13.0"), ("13.2", "13.0 (toolkit {})")]
)
def test_nvcc_and_torch_have_one_major_version(setup, toolkit, release, cuda):
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.write_text(f"{nvcc.read_text()}echo 'Cuda compilation tools, release {release}, V{release}.99'\n")
    assert setup("13.0", CUDA_HOME=toolkit)["CUDA"] == cuda.format(toolkit)


@pytest.mark.parametrize("cuda_home", ["/nowhere", None])
def test_a_cuda_torch_without_nvcc_gives_a_cpu_build_that_says_so(setup, cuda_home, monkeypatch):
    if cuda_home is None:  # neither on PATH nor where toolkits are installed
        monkeypatch.setattr("shutil.which", lambda name: None)
        monkeypatch.setattr("subprocess.run", raise_not_found)
    values = setup("13.0", **({"CUDA_HOME": cuda_home} if cuda_home else {}))
    assert values["TOOLKIT"] is None
    assert values["CUDA"] == "no: nvcc was not found"


def raise_not_found(*arguments, **options):
    raise FileNotFoundError


def test_frameattn_cuda_forces(setup, toolkit):
    assert setup("13.0", CUDA_HOME=toolkit, FRAMEATTN_CUDA=0)["CUDA"] == "no: FRAMEATTN_CUDA=0"
    assert setup("13.0", CUDA_HOME=toolkit, FRAMEATTN_CUDA=1)["TOOLKIT"] == toolkit
    with pytest.raises(SystemExit, match="FRAMEATTN_CUDA=1, but CUDA cannot be built: no: nvcc was not found"):
        setup("13.0", CUDA_HOME="/nowhere", FRAMEATTN_CUDA=1)
    with pytest.raises(SystemExit, match="cannot be built: no: the installed torch is a CPU build"):
        setup(None, CUDA_HOME=toolkit, FRAMEATTN_CUDA=1)
    with pytest.raises(SystemExit, match="FRAMEATTN_CUDA must be 0 or 1, got 'yes'"):
        setup("13.0", FRAMEATTN_CUDA="yes")


def test_the_toolkit_is_found_behind_a_wrapper_script(setup, toolkit, tmp_path):
    wrapper = script(tmp_path / "elsewhere" / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    values = setup("13.0", PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    assert values["TOOLKIT"] == toolkit
    assert os.environ["CUDA_HOME"] == str(toolkit)


def test_architectures_do_not_depend_on_the_gpu_but_on_the_user(setup, toolkit):
    setup("13.0", CUDA_HOME=toolkit)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0+PTX;9.0a;12.0"
    setup("13.0", CUDA_HOME=toolkit, TORCH_CUDA_ARCH_LIST="9.0a")
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"


@pytest.fixture
def cuda_setup(setup, toolkit, monkeypatch) -> Callable[[str], dict]:
    """run(architectures) imports setup.py for a CUDA build."""
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(toolkit))
    return lambda architectures: setup("13.0", CUDA_HOME=toolkit, TORCH_CUDA_ARCH_LIST=architectures)


@pytest.mark.parametrize(
    "architectures, among",
    [
        ("8.0+PTX;9.0a;12.0", True),
        ("9.0a", True),
        ("8.0 9.0a+PTX", True),
        ("8.0;9.0;12.0a", False),
        ("9.0+PTX", False),
    ],
)
def test_sources_of_sm_90a_need_it_among_the_architectures(cuda_setup, architectures, among):
    values = cuda_setup(architectures)
    probe = "csrc/device/cuda/hopper_probe_sm90.cu"
    assert (probe in values["sm_90a_sources"]()) == among
    extension = values["extension"]()
    assert (("FRAMEATTN_WITH_SM90A", "1") in extension.define_macros) == among
    assert "csrc/device/cuda/device_image.cu" in extension.sources
    assert probe not in extension.sources


def test_a_cpu_build_has_no_sources_of_sm_90a(setup):
    values = setup(None)
    assert values["sm_90a_sources"]() == []
    assert "FRAMEATTN_WITH_SM90A" not in dict(values["extension"]().define_macros)


@pytest.mark.parametrize("debug, expected", [("1", {"-O0", "-g"}), ("", {"-O3", "-g0"})])
def test_frameattn_debug_leaves_optimisation_out(setup, debug, expected):
    flags = setup(None, FRAMEATTN_DEBUG=debug)["extension"]().extra_compile_args["cxx"]
    assert {flag for flag in flags if flag.startswith(("-O", "-g"))} == expected


@pytest.fixture
def build_extension(monkeypatch) -> Callable[[dict], tuple]:
    """build(values of setup.py): the extension, what is compiled apart from it, and the objects that are linked."""
    calls, linked = [], []

    class Compiler:
        def compile(self, sources, **options):
            calls.append((sources, options))
            return [f"{options['output_dir']}/{source}.o" for source in sources]

    def run(values: dict) -> tuple:
        build, extension = values["Build"](Distribution()), values["extension"]()
        build.build_temp, build.compiler = "temp", Compiler()
        build.build_extension(extension)
        return extension, calls, linked

    monkeypatch.setattr(build_ext, "build_extension", lambda build, extension: linked.extend(extension.extra_objects))
    return run


@pytest.mark.parametrize("architectures, compiled", [("8.0;9.0a", True), ("8.0", False)])
def test_sources_of_sm_90a_are_compiled_for_it_alone(cuda_setup, architectures, compiled, build_extension):
    values = cuda_setup(architectures)
    extension, calls, linked = build_extension(values)
    if not compiled:
        assert calls == linked == []
        return
    ((sources, options),) = calls
    assert sources == values["read_sources"]("cuda sm_90a")
    assert linked == [f"temp/sm_90a/{source}.o" for source in sources]
    for_all = extension.extra_compile_args["nvcc"]
    flags = options["extra_postargs"]["nvcc"]
    assert flags == [*for_all, "-gencode=arch=compute_90a,code=sm_90a"]
    # What torch adds to either.
    assert cpp_extension._get_cuda_arch_flags(flags) == []
    assert len(cpp_extension._get_cuda_arch_flags(for_all)) == 2


def test_another_namespace_is_one_source_and_leaves_the_others_as_they_are(setup, build_extension):
    usual = setup(None)["extension"]()
    extension, ((sources, options),), linked = build_extension(setup(None, FRAMEATTN_NAMESPACE="other_1"))
    assert sources == ["csrc/shared/operator_namespace.cpp"]
    assert set(options["macros"]) - set(extension.define_macros) == {("FRAMEATTN_NAMESPACE", '"other_1"')}
    assert linked == ["temp/namespace/csrc/shared/operator_namespace.cpp.o"]
    assert set(usual.sources) - set(extension.sources) == set(sources)
    # Or ninja would compile them again.
    assert extension.define_macros == usual.define_macros
    assert extension.extra_compile_args == usual.extra_compile_args


@pytest.mark.parametrize("namespace", ["1st", "a-b", "a::b", "é", "a\n"])
def test_a_namespace_is_a_name(setup, namespace):
    with pytest.raises(SystemExit, match="FRAMEATTN_NAMESPACE must be a name of"):
        setup(None, FRAMEATTN_NAMESPACE=namespace)


def test_operators_are_registered_in_that_namespace():
    """torch's own macros and a name of the dispatcher would have the usual one."""
    paths = [path for pattern in ("*.cpp", "*.h") for path in ROOT.glob(f"csrc/**/{pattern}")]
    found = [path.name for path in paths if re.search(r'^TORCH_LIBRARY|"frameattn::', path.read_text(), re.MULTILINE)]
    assert found == []


@pytest.mark.parametrize("cuda, variant", [(None, "cpu"), ("13.0", "cu130")])
def test_a_build_is_for_its_minor_version_of_torch(setup, toolkit, monkeypatch, cuda, variant):
    monkeypatch.setattr(torch, "__version__", "2.13.1+any")
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    version, dependencies = setup(cuda, CUDA_HOME=toolkit)["metadata"]()
    assert version == f"{(ROOT / 'VERSION').read_text().strip()}+torch2.13.{variant}"
    assert dependencies == ["torch==2.13.*", "numpy"]


def test_a_source_distribution_is_for_all(setup, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", "sdist"])
    version, dependencies = setup(None)["metadata"]()
    assert version == (ROOT / "VERSION").read_text().strip() and dependencies == ["torch>=2.11", "numpy"]


def test_without_torch_it_says_what_to_do(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    result = subprocess.run(
        [sys.executable, ROOT / "setup.py", "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "pip install --no-build-isolation" in result.stderr.splitlines()[-1]


def test_every_source_is_compiled_once(setup):
    read_sources = setup(None)["read_sources"]
    listed = [source for when in ("", "cuda", "cuda sm_90a") for source in read_sources(when)]
    units = [ROOT / source for source in listed if source.startswith("csrc/units/")]
    included = [source for unit in units for source in re.findall(r'#include "(.*)"', unit.read_text())]
    found = [
        path.relative_to(ROOT).as_posix() for pattern in ("*.cpp", "*.cu") for path in ROOT.glob(f"csrc/**/{pattern}")
    ]
    assert sorted([*listed, *included, "csrc/bindings/module.cpp"]) == sorted(found)


def test_check_kernels_reads_the_same_list(setup):
    read_sources = setup(None)["read_sources"]
    tool = run_path(str(ROOT / "tools" / "check_kernels.py"))
    for_all = {source: "" for source in read_sources("cuda") if source.endswith(".cu")}
    del for_all["csrc/device/cuda/device_image.cu"]  # an empty kernel
    assert tool["listed_files"]() == {**for_all, **dict.fromkeys(read_sources("cuda sm_90a"), "sm_90a")}


def test_cmake_options_name_this_torch():
    options = subprocess.run([sys.executable, ROOT / "cmake" / "torch_options.py"], capture_output=True, text=True)
    if torch.version.cuda and "nvcc was not found" in options.stderr:
        return
    assert options.returncode == 0, options.stderr
    prefix, *rest = options.stdout.split()
    assert Path(prefix.removeprefix("-DCMAKE_PREFIX_PATH="), "Torch", "TorchConfig.cmake").exists()
    names = ["CUDA_TOOLKIT_ROOT_DIR", "TORCH_CUDA_ARCH_LIST", "CUDA_nvrtc_LIBRARY"] if torch.version.cuda else []
    assert [option.removeprefix("-D").partition("=")[0] for option in rest] == names
