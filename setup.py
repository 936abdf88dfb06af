"""Builds fastqat._C (CPU kernels, build facts) and, beside a CUDA torch and nvcc, fastqat._C_cuda.

FASTQAT_CUDA=0|1|auto   build the CUDA object: never, always (fail without a toolkit), or when torch and nvcc allow (default)
FASTQAT_CUDA_ARCHS      e.g. "80;90;100": compute capabilities to compile for; PTX of the last one is added
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # LibTorch stable ABI of 2.10: any later torch loads the same object
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall"]
NVCC_FLAGS = [
    *["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-fmad=false", "-Xfatbin=-compress-all"],
    *["-DUSE_CUDA", STABLE_ABI],
]


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(f"{folder}*.{suffix}"))


def cuda_archs(home: Path) -> list[str]:
    """The compute capabilities asked for, else those of the default that this nvcc knows."""
    if "FASTQAT_CUDA_ARCHS" in os.environ:
        return os.environ["FASTQAT_CUDA_ARCHS"].split(";")
    known = subprocess.run([str(home / "bin/nvcc"), "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return [arch for arch in ("80", "90", "100") if f"compute_{arch}" in known]


def cuda_home() -> Path | None:
    """The toolkit's own folder: what `nvcc --dryrun` calls TOP, since the nvcc on PATH may be a wrapper."""
    nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin")) if "CUDA_HOME" in os.environ else shutil.which("nvcc")
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else None


def pybind11_headers() -> list[str]:
    """The package's own headers, which every torch accepts beside the stable ABI; without it the copy in torch, which 2.10's refuses."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def why_no_cuda(home: Path | None) -> str | None:
    """None when the CUDA object can be built, else the reason."""
    if CUDA_WISH == "0":
        return "switched off by FASTQAT_CUDA=0"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if home is None:
        return "no nvcc on PATH or in CUDA_HOME"
    if not next(home.rglob("libcudart_static.a"), None):
        return f"no libcudart_static.a below {home}"
    return None


def build_facts(archs: list[str]) -> list[str]:
    """What `fastqat info` shows of this build, as one macro."""
    facts = {
        "torch": torch.__version__,
        "stable_abi": "2.10",
        "python": platform.python_version(),
        "flags": " ".join(CXX_FLAGS),
        "cuda_archs": " ".join(archs),
    }
    return [f"-DFASTQAT_BUILD_FACTS={json.dumps(json.dumps(facts))}"]


class Build(BuildExtension):
    """torch's ninja build for C++; nvcc is called by hand, since torch's own rules link the shared CUDA runtime."""

    def build_extension(self, ext: Extension) -> None:
        for source in [s for s in ext.sources if s.endswith(".cu")]:
            ext.extra_objects.append(self.compile_cuda(source))
        ext.sources = [s for s in ext.sources if not s.endswith(".cu")]
        super().build_extension(ext)

    def compile_cuda(self, source: str) -> str:
        target = Path(self.build_temp).resolve() / f"{source}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in [*include_paths(), str(ROOT / "csrc")]]
        gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
        ptx = [f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}"]
        subprocess.check_call([str(HOME / "bin/nvcc"), *NVCC_FLAGS, *gencode, *ptx, *includes, "-c", source, "-o", str(target)])
        return str(target)


def cpp_extension(name: str, files: list[str], macros: list[str], **options: list[str]) -> Extension:
    return Extension(
        f"fastqat.{name}",
        files,
        language="c++",
        include_dirs=[*pybind11_headers(), *include_paths(), str(ROOT / "csrc")],
        extra_compile_args={"cxx": [*CXX_FLAGS, f"-ffile-prefix-map={ROOT}=.", STABLE_ABI, *macros]},
        **options,
    )


CUDA_WISH = os.environ.get("FASTQAT_CUDA") or "auto"
if CUDA_WISH not in ("0", "1", "auto"):
    raise SystemExit(f"FASTQAT_CUDA is {CUDA_WISH!r}; accepted: 0 (never), 1 (always), auto (where torch and nvcc allow)")
HOME = cuda_home()
NO_CUDA = why_no_cuda(HOME)
ARCHS = [] if NO_CUDA else cuda_archs(HOME)
if NO_CUDA and CUDA_WISH == "1":
    raise SystemExit(f"FASTQAT_CUDA=1, but the CUDA kernels cannot be built: {NO_CUDA}")
print(f"fastqat: building the CPU kernels {'only: ' + NO_CUDA if NO_CUDA else f'and the CUDA kernels for sm {ARCHS}'}")

torch_libs = {"library_dirs": library_paths(), "libraries": ["c10", "torch", "torch_cpu"]}
facts = build_facts(ARCHS)
extensions = [cpp_extension("_C", sources("", "cpp") + sources("cpu/", "cpp"), facts, **torch_libs)]
if not NO_CUDA:
    static_runtime = next(HOME.rglob("libcudart_static.a"))
    cuda_libs = {
        "library_dirs": [*library_paths(), str(static_runtime.parent)],
        "libraries": ["c10", "torch", "torch_cpu", "torch_cuda", "cudart_static", "rt", "pthread", "dl"],
    }
    extensions.append(cpp_extension("_C_cuda", sources("cuda/", "cpp") + sources("cuda/", "cu"), facts, **cuda_libs))

setup(ext_modules=extensions, cmdclass={"build_ext": Build.with_options(use_ninja=True)})
