"""Builds frameattn._C, the extension module with the C++ and CUDA operators.

What decides the build: the torch that is importable (its CPU or CUDA variant), nvcc, and five variables:
FRAMEATTN_CUDA=0|1 forces a CPU or CUDA build, TORCH_CUDA_ARCH_LIST names the architectures, MAX_JOBS the number of
compilers at once, FRAMEATTN_DEBUG=1 builds without optimisation, FRAMEATTN_NAMESPACE is that of the operators in torch.
Metadata is in pyproject.toml.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from runpy import run_path

from setuptools import setup

try:
    import torch
except ImportError:
    raise SystemExit(
        "setup.py: frameattn is compiled for the torch that is installed, and this Python finds none. Install torch, "
        "setuptools>=77 and ninja, then run pip install --no-build-isolation, with the path or name that you gave"
    ) from None

ROOT = Path(__file__).parent
# Every GPU since Ampere: machine code for A100, H100 (with its own instructions) and Blackwell cards, PTX for the rest.
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0+PTX;9.0a;12.0")


def find_cuda_toolkit() -> Path | None:
    """The folder that holds bin/nvcc. nvcc on PATH may be a wrapper script, so nvcc itself is asked where it lives."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(home) if Path(home, "bin", "nvcc").exists() else None
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        dry_run = subprocess.run([nvcc, "--dryrun", "-c", "any.cu"], capture_output=True, text=True)
    except OSError:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else None


def find_release(toolkit: Path) -> str:
    """Of the toolkit's nvcc, "13.0"; "" if it does not say."""
    try:
        said = subprocess.run([toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""
    release = re.search(r"release (\d+\.\d+)", said)
    return release[1] if release else ""


def decide_cuda() -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or None, and what the build summary says about it."""
    forced = os.environ.get("FRAMEATTN_CUDA")
    if forced not in (None, "", "0", "1"):
        raise SystemExit(f"setup.py: FRAMEATTN_CUDA must be 0 or 1, got {forced!r}")
    toolkit = find_cuda_toolkit()
    if forced == "0":
        reason = "no: FRAMEATTN_CUDA=0"
    elif torch.version.cuda is None:
        reason = "no: the installed torch is a CPU build"
    elif toolkit is None:
        reason = "no: nvcc was not found"
    elif (release := find_release(toolkit)) and release.split(".")[0] != torch.version.cuda.split(".")[0]:
        reason = f"no: nvcc is of CUDA {release}, torch of CUDA {torch.version.cuda}"
    else:
        return toolkit, f"{torch.version.cuda} (toolkit {toolkit})"
    if forced == "1":
        raise SystemExit(f"setup.py: FRAMEATTN_CUDA=1, but CUDA cannot be built: {reason}")
    return None, reason


def decide_namespace() -> str:
    """What the operators are registered under, in torch.ops."""
    namespace = os.environ.get("FRAMEATTN_NAMESPACE") or "frameattn"
    if not re.fullmatch(r"[A-Za-z_]\w*", namespace, re.ASCII):
        raise SystemExit(f"setup.py: FRAMEATTN_NAMESPACE must be a name of letters, digits and _, got {namespace!r}")
    return namespace


NAMESPACE = decide_namespace()
TOOLKIT, CUDA = decide_cuda()
if TOOLKIT:
    os.environ["CUDA_HOME"] = str(TOOLKIT)  # before torch.utils.cpp_extension guesses it

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, get_cxx_compiler  # noqa: E402


def describe_compiler() -> str:
    """What the C++ compiler says of itself; "" if there is none."""
    try:
        command = [*shlex.split(get_cxx_compiler()), "--version"]
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""


def read_sources(when: str) -> list[str]:
    """The sources of csrc/sources.txt before whose path stands "", "cuda" or "cuda sm_90a"."""
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    sources = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return [path for before, _, path in sources if before == when]


def sm_90a_sources() -> list[str]:
    """Those of the kernels with Hopper's own instructions, if this build has them."""
    architectures = re.split("[; +]", os.environ["TORCH_CUDA_ARCH_LIST"])  # one may be 9.0a+PTX
    return read_sources("cuda sm_90a") if TOOLKIT and "9.0a" in architectures else []


def namespace_sources() -> list[str]:
    """The source that has to know another namespace than the usual one."""
    return [] if NAMESPACE == "frameattn" else ["csrc/shared/operator_namespace.cpp"]


def metadata() -> tuple[str, list[str]]:
    """Version and dependencies. A library loads with the minor version of torch that it was compiled for, so a build
    says so in both: no resolver then installs it beside another one. A source distribution is for all; what is built of
    one keeps its version, which pip compares with the file's name."""
    version = (ROOT / "VERSION").read_text().strip()
    if "sdist" in sys.argv:
        return version, ["torch>=2.11", "numpy"]
    minor = ".".join(torch.__version__.split(".")[:2])
    if (ROOT / "PKG-INFO").exists():
        return version, [f"torch=={minor}.*", "numpy"]
    variant = f"cu{torch.version.cuda.replace('.', '')}" if TOOLKIT else "cpu"
    return f"{version}+torch{minor}.{variant}", [f"torch=={minor}.*", "numpy"]


def extension():
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"] if TOOLKIT else "none"
    debug = os.environ.get("FRAMEATTN_DEBUG") == "1"
    optimisation = ["-O0", "-g"] if debug else ["-O3", "-g0"]
    macros = [
        ("FRAMEATTN_CUDA", f'"{torch.version.cuda if TOOLKIT else CUDA}"'),
        ("FRAMEATTN_CUDA_ARCHITECTURES", f'"{architectures}"'),
    ]
    include_dirs = [str(ROOT), str(ROOT / "csrc" / "include")]
    # The last two let loops with exponentials and comparisons be vectorised (csrc/shared/cpu/row_kernels.cpp).
    flags = {
        "cxx": [
            "-std=c++20",
            "-fopenmp",
            "-fno-trapping-math",
            "-fno-math-errno",
            "-Wall",
            "-Wno-unknown-pragmas",
            *optimisation,
        ]
    }
    if TOOLKIT:
        macros.append(("FRAMEATTN_WITH_CUDA", "1"))
        # Compressed, the machine code takes a fifth: in the format that every driver reads, not --compress-mode's.
        flags["nvcc"] = ["-std=c++20", "-Xfatbin=-compress-all", *optimisation[:1]]
        if debug:
            flags["nvcc"].append("-lineinfo")
        # Headers of the CUDA libraries may come with torch's own packages instead of the toolkit.
        packaged = Path(torch.__file__).parents[1] / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "include"
        if packaged.is_dir() and not (TOOLKIT / "include" / "cusparse.h").exists():
            include_dirs.append(str(packaged))
    if sm_90a_sources():
        macros.append(("FRAMEATTN_WITH_SM90A", "1"))
    kind = CUDAExtension if TOOLKIT else CppExtension
    sources = [source for source in read_sources("") if source not in namespace_sources()]
    built = kind(
        "frameattn._C",
        ["csrc/bindings/module.cpp", *sources, *(read_sources("cuda") if TOOLKIT else [])],
        include_dirs=[*include_dirs],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )
    # Torch's headers are not ours to be warned of.
    torch_dirs = [folder for folder in built.include_dirs if folder not in include_dirs]
    built.include_dirs = include_dirs
    for flags_of_one in flags.values():
        for folder in torch_dirs:
            flags_of_one += ["-isystem", folder]
    return built


def describe_build() -> dict[str, str]:
    """What _build.py says: frameattn/_load.py explains another torch before the dynamic linker fails on it, and
    benchmarks/gpu_check takes a package that was built elsewhere if it is of the same sources."""
    source_digest = run_path(str(ROOT / "csrc" / "source_digest.py"))["source_digest"]
    return {
        "TORCH_VERSION": torch.__version__,
        "CUDA_VERSION": torch.version.cuda if TOOLKIT else "",
        "SOURCE_DIGEST": source_digest(ROOT, ["csrc", "setup.py"]),
        "PYTHON_ABI": sysconfig.get_config_var("SOABI"),
        "CUDA_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"] if TOOLKIT else "none",
    }


class Build(BuildExtension):
    def finalize_options(self):
        super().finalize_options()
        # setuptools would compare the library with the units alone, not with what these include.
        self.force = True
        # Kept between builds, also those of pip: ninja then compiles only what changed.
        self.build_temp = os.path.join("build", f"temp-{sys.implementation.cache_tag}-torch-{torch.__version__}")

    def build_extension(self, ext):
        if sources := sm_90a_sources():
            # torch gives every .cu file of an extension the same architectures, but none where the flags name one.
            nvcc = [*ext.extra_compile_args["nvcc"], "-gencode=arch=compute_90a,code=sm_90a"]
            ext.extra_objects += self.compile_apart(ext, "sm_90a", sources, flags={"nvcc": nvcc})
        if sources := namespace_sources():
            # By itself, since ninja compiles everything again where the macros of an extension change.
            macros = [("FRAMEATTN_NAMESPACE", f'"{NAMESPACE}"')]
            ext.extra_objects += self.compile_apart(ext, "namespace", sources, macros=macros)
        super().build_extension(ext)

    def compile_apart(self, ext, folder, sources, macros=(), flags=None) -> list[str]:
        """The objects of sources with macros and flags of their own; ninja keeps files of its own in their folder."""
        return self.compiler.compile(
            sources,
            output_dir=os.path.join(self.build_temp, folder),
            macros=[*ext.define_macros, *macros],
            include_dirs=ext.include_dirs,
            debug=self.debug,
            extra_postargs={**ext.extra_compile_args, **(flags or {})},
        )

    def run(self):
        values = describe_build()  # before the compilers read the sources: what changes meanwhile is not in it
        super().run()
        path = Path(self.get_ext_fullpath("frameattn._C")).parent / "_build.py"
        path.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
        print(
            "\nframeattn was built\n"
            f"  torch               {torch.__version__}\n"
            f"  compiler            {(describe_compiler() or 'unknown').splitlines()[0]}\n"
            f"  openmp              -fopenmp\n"
            f"  operators           torch.ops.{NAMESPACE}\n"
            f"  cuda                {CUDA}\n"
            f"  cuda architectures  {os.environ['TORCH_CUDA_ARCH_LIST'] if TOOLKIT else 'none'}\n",
            flush=True,
        )


if __name__ == "__main__":  # tests and cmake/torch_options.py import this file to ask what it decides
    version, dependencies = metadata()
    setup(
        version=version,
        install_requires=dependencies,
        ext_modules=[extension()],
        cmdclass={"build_ext": Build},
        package_dir={"": "python"},
    )
