"""The loops of kernels.c: compiled once for each machine, or done without.

Where there is no C compiler, or its work cannot be kept or loaded, layers take PyTorch's operations
instead, which do the same more slowly; the log says so once.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC"]
# Not each compiler knows OpenMP; without it the loops run on one thread.
THREADED = "-fopenmp"
# Seconds that a compiler may take; it takes two.
PATIENCE = 120

_POINTER, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_KEY, _THRESHOLD, _THREADS = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SIGNATURES: dict[str, list[type]] = {
    "dropout": [
        *[_POINTER] * 3,
        *(_COUNT, _KEY, _THRESHOLD, _THRESHOLD),
        *[_NUMBER] * 3,
        _THREADS,
    ],
    "apply": [*[_POINTER] * 3, _COUNT, _COUNT, _NUMBER, _THREADS],
    "norm_forward": [*[_POINTER] * 7, *[_COUNT] * 5, _NUMBER, _THREADS],
    "norm_backward": [*[_POINTER] * 9, *[_COUNT] * 5, _NUMBER, _THREADS],
}
_TYPES = {
    "dropout": (torch.float32, torch.float64, torch.bfloat16),
    "apply": (torch.float32, torch.float64, torch.bfloat16),
    "norm_forward": (torch.float32, torch.float64),
    "norm_backward": (torch.float32, torch.float64),
}


def _folder() -> Path:
    """Where compiled kernels are kept: not in the package, which may be read-only."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "regain" / "kernels"


def _compile(target: Path) -> None:
    """Compile the kernels, whole or not at all: several processes may do it at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for threads in ([THREADED], []):
            command = [*compiler, *FLAGS, *threads, str(SOURCE), "-o", str(made), "-lm"]
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if ended.returncode == 0:
                made.replace(target)
                return
    lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    raise OSError(f"{compiler[0]}: {lines[0]}")


@functools.cache
def compiled_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    try:
        file = _folder() / f"kernels-{platform.system()}-{platform.machine()}-{key}.so"
        if not file.exists():
            _compile(file)
        loaded = ctypes.CDLL(str(file))
        for name, types in _TYPES.items():
            for dtype in types:
                _function(loaded, name, dtype).argtypes = _SIGNATURES[name]  # type: ignore[attr-defined]
        loaded.blocks.argtypes = [_POINTER, _COUNT, _POINTER, _POINTER, _NUMBER, _KEY, _THREADS]
    except (OSError, AttributeError, subprocess.TimeoutExpired) as error:
        log.info("layers run without compiled kernels, more slowly: %s", error)
        return None
    return loaded


def _function(loaded: ctypes.CDLL, name: str, dtype: torch.dtype) -> Callable[..., None]:
    found: Callable[..., None] = getattr(loaded, f"{name}_{str(dtype).removeprefix('torch.')}")
    return found


def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Return a kernel for a type; `usable` has said that there is one."""
    loaded = compiled_kernels()
    assert loaded is not None
    return _function(loaded, name, dtype)


def usable(name: str, x: Tensor) -> bool:
    """Whether a kernel can do the work: not on the GPU, nor where PyTorch wants to see operations.

    A tensor of a subclass, or one that is traced or transformed by `torch.func`, has no memory that
    a kernel could read.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in _TYPES[name]
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and compiled_kernels() is not None
    )
