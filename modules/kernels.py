"""The loops of kernels.c: compiled once for each machine, or done without.

Where there is no C compiler, or its work cannot be kept or loaded, layers take PyTorch's operations
instead, which do the same more slowly; the log says so once. All memory that a loop reads is
checked here, and all memory that it writes is allocated here.
"""

import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC"]
# Not each compiler knows OpenMP; without it the loops run on one thread.
THREADED = "-fopenmp"
# Seconds that a compiler may take; it takes two.
PATIENCE = 120
# Permission to write for others than the owner.
FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Bits of a mask that are stored as one integer.
WORD = 64
# A rate is met to so many binary places.
PLACES = 48
# Positions of a map, as far as blocks reach over its border, that 64 bits can count.
MOST_POSITIONS = 2**62

# Classes whose tensors hold nothing but their values.
_PLAIN = (Tensor, torch.nn.Parameter)
_POINTER, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_KEY, _THRESHOLD, _THREADS = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "dropout": (
        [*[_POINTER] * 3, _COUNT, _KEY, _THRESHOLD, _THRESHOLD, *[_NUMBER] * 3, _THREADS],
        None,
    ),
    "apply": ([*[_POINTER] * 3, _COUNT, _COUNT, _NUMBER, _THREADS], None),
    "norm_forward": ([*[_POINTER] * 7, *[_COUNT] * 4, _NUMBER, _THREADS], _COUNT),
    "norm_backward": ([*[_POINTER] * 9, *[_COUNT] * 5, _NUMBER, _THREADS], ctypes.c_int),
}
_TYPES = {
    "dropout": {torch.float32, torch.float64, torch.bfloat16},
    "apply": {torch.float32, torch.float64, torch.bfloat16},
    "norm_forward": {torch.float32, torch.float64},
    "norm_backward": {torch.float32, torch.float64},
}


def _folder() -> Path:
    """Where compiled kernels are kept: not in the package, which may be read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # The XDG specification says to ignore a relative path.
    home = home if home.is_absolute() else Path("~/.cache").expanduser()
    return home / "regain" / "kernels"


def _refuse_foreign(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raise an error if somebody else could have put the file or folder there, or changed it."""
    found = path.lstat()
    if not is_kind(found.st_mode):
        raise PermissionError(f"{path} is a link, or not what it should be")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    if os.name == "posix" and found.st_mode & FOREIGN_WRITE:
        raise PermissionError(f"{path} can be written to by others: chmod go-w removes that")


def _compile(target: Path, compiler: list[str]) -> None:
    """Compile the kernels, whole or not at all: several processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for threads in ([THREADED], []):
            command = [*compiler, *FLAGS, *threads, str(SOURCE), "-o", str(made), "-lm"]
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if ended.returncode == 0:
                made.chmod(0o700)
                made.replace(target)
                return
    lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    raise OSError(f"{compiler[0]}: {lines[0]}")


def _load(file: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(file))
    for name, types in _TYPES.items():
        for dtype in types:
            function = _function(loaded, name, dtype)
            function.argtypes, function.restype = _SIGNATURES[name]
    blocks = loaded.blocks
    blocks.argtypes = [_POINTER, _COUNT, _POINTER, _POINTER, _NUMBER, _KEY, _THREADS]
    blocks.restype = ctypes.c_int
    return loaded


def _cached(name: str, compiler: list[str]) -> ctypes.CDLL:
    """Load the kernels from the user's cache, where only the user may have put them."""
    folder = _folder()
    # With the mode given, so that a group that shares the umask cannot write there.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(folder, stat.S_ISDIR)
    file = folder / name
    if not os.path.lexists(file):
        _compile(file, compiler)
    _refuse_foreign(file, stat.S_ISREG)
    return _load(file)


@functools.cache
def compiled_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS)).encode()).hexdigest()
        name = f"kernels-{platform.system()}-{platform.machine()}-{key[:16]}.so"
        try:
            return _cached(name, compiler)
        # A RuntimeError is of a user without a home.
        except (OSError, RuntimeError) as error:
            log.info("compiled kernels are not cached: %s", error)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            _compile(file, compiler)
            return _load(file)
    # A ValueError is of a CC that no shell could read.
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        log.info("layers run without compiled kernels, more slowly: %s", error)
        return None


@functools.cache
def _function(loaded: ctypes.CDLL, name: str, dtype: torch.dtype) -> Any:
    return getattr(loaded, f"{name}_{str(dtype).removeprefix('torch.')}")


def _loaded() -> ctypes.CDLL:
    loaded = compiled_kernels()
    assert loaded is not None, "a kernel is called where `usable` says that there is none"
    return loaded


def _is_plain(x: Any) -> bool:
    """Whether `x` is a tensor of which each value has its place in memory on the CPU."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        # Of the first the sign, of the second all is in no memory.
        and not x.is_neg()
        and not x._is_zerotensor()
    )


def _is_recorded() -> bool:
    """Whether PyTorch records operations, or transforms them: then it must see each of them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def has_values(x: Any) -> bool:
    """Whether `x` is a tensor whose values Python may read now.

    Not one of a subclass, on the meta device, nested, sparse, or one that is compiled, traced,
    batched or transformed by `torch.func`.
    """
    return (
        not _is_recorded()
        and type(x) in _PLAIN
        and not x.is_meta
        and x.layout is torch.strided
        and not x.is_nested
        # One of several gradients that are computed at once.
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def readable(name: str, x: Any) -> bool:
    """Whether `x` has memory that the kernel of that name could read."""
    return (
        not _is_recorded()
        and _is_plain(x)
        and x.dtype in _TYPES[name]
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def usable(name: str, x: Any) -> bool:
    """Whether the kernel of that name is there, and could read `x`."""
    return readable(name, x) and compiled_kernels() is not None


def _address(
    name: str,
    x: Tensor,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
    dense: bool = False,
) -> int:
    """Return where the memory of a tensor begins, of which a kernel will read that shape.

    Args:
        name: What the tensor is, for an error.
        x: The tensor.
        dtype: Type that the kernel reads; that of the tensor if None.
        shape: Shape that the kernel reads; that of the tensor if None.
        dense: Whether the dimensions may be in any order in memory.

    Raises:
        ValueError: The tensor is of another kind, type, shape or layout.
    """
    if not _is_plain(x):
        raise ValueError(f"{name} is not a plain tensor on the CPU: {type(x).__name__}")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name} is of type {dtype}, not {x.dtype}")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(shape)}, not {tuple(x.shape)}")
    if not (x.is_contiguous() or (dense and torch.empty_like(x).stride() == x.stride())):
        raise ValueError(f"{name} has gaps in memory: strides {x.stride()}")
    return x.data_ptr()


def _check_type(name: str, x: Tensor) -> None:
    if x.dtype not in _TYPES[name]:
        raise ValueError(f"there is no kernel {name} for {x.dtype}")


def dropout(
    x: Tensor, key: int, p: float, scale: float, shift: float, dropped: float
) -> tuple[Tensor, Tensor]:
    """Return scale * x + shift where a value is kept, else `dropped`; and a bit for each value."""
    _check_type("dropout", x)
    if not 0.0 < p < 1.0:
        raise ValueError(f"p is a rate in (0, 1), not {p!r}")
    address = _address("x", x, dense=True)
    y = torch.empty_like(x)
    bits = torch.empty(math.ceil(x.numel() / WORD), dtype=torch.int64, device="cpu")
    high, low = threshold(p)
    _function(_loaded(), "dropout", x.dtype)(
        *(address, y.data_ptr(), bits.data_ptr(), x.numel()),
        *(key, high, low, scale, shift, dropped, torch.get_num_threads()),
    )
    return y, bits


def threshold(p: float) -> tuple[int, int]:
    """Return what random numbers of 16 bits, and of 32 further ones, are compared with."""
    high, low = divmod(round(p * 2**PLACES), 2**32)
    return high, low


def apply(x: Tensor, bits: Tensor, rows: int, scale: float) -> Tensor:
    """Return scale * x where a bit is set, else zero; each of `rows` has whole words of bits."""
    _check_type("apply", x)
    if rows < 1 or x.numel() % rows:
        raise ValueError(f"{x.numel()} values are not {rows} rows")
    columns = x.numel() // rows
    shape = bits.shape[:-1] if bits.dim() == 2 else ()
    words = math.ceil(columns / WORD)
    y = torch.empty_like(x)
    _function(_loaded(), "apply", x.dtype)(
        _address("x", x, dense=True),
        y.data_ptr(),
        _address("bits", bits, torch.int64, (rows, words) if shape else (rows * words,)),
        *(rows, columns, scale, torch.get_num_threads()),
    )
    return y


def blocks(
    rows: int, sizes: Sequence[int], sides: Sequence[int], log_stay: float, key: int
) -> Tensor:
    """Return rows of bits, zero where a block covers a position of a map of three sizes."""
    if len(sizes) != 3 or len(sides) != 3 or min(rows, *sizes, *sides) < 1:
        raise ValueError(f"there are no blocks of {sides} in {rows} maps of {sizes}")
    if math.prod(map(sum, zip(sizes, sides, strict=True))) * rows > MOST_POSITIONS:
        raise ValueError(f"blocks of {sides} in maps of {sizes} are too large to be counted")
    if not -math.inf < log_stay < 0.0:
        raise ValueError(f"the logarithm of a probability below 1 is negative, not {log_stay!r}")
    words = math.ceil(math.prod(sizes) / WORD)
    bits = torch.empty(rows, words, dtype=torch.int64, device="cpu")
    shapes = (ctypes.c_int64 * 6)(*sizes, *sides)
    start = ctypes.addressof(shapes)
    enough = _loaded().blocks(
        *(bits.data_ptr(), rows, start, start + 3 * ctypes.sizeof(ctypes.c_int64)),
        *(log_stay, key, torch.get_num_threads()),
    )
    if not enough:
        raise MemoryError(f"no memory for masks of {sizes}")
    return bits


def _norm_sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return batch, channels, lines and steps of (batch, channels, ..., time)."""
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"a norm is of (batch, channels, ..., time), not of {tuple(x.shape)}")
    batch, channels, *inner = x.shape
    # A vector is a single step.
    steps = inner[-1] if inner else 1
    return batch, channels, math.prod(inner) // steps, steps


def norm_forward(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return batch norm over the valid steps, mean and variance, and the number of values.

    Of fewer than two values a channel there is no norm: only their number is of use.
    """
    _check_type("norm_forward", x)
    sizes = _norm_sizes(x)
    y = torch.empty_like(x)
    mean, variance = x.new_empty(sizes[1]), x.new_empty(sizes[1])
    count = _function(_loaded(), "norm_forward", x.dtype)(
        _address("x", x),
        _address("mask", mask, torch.bool, (sizes[0], sizes[3])),
        *_parameters(x, weight=weight, bias=bias),
        *(y.data_ptr(), mean.data_ptr(), variance.data_ptr()),
        *(*sizes, eps, torch.get_num_threads()),
    )
    if count < 0:
        raise MemoryError(f"no memory for a mask of {tuple(mask.shape)}")
    return y, mean, variance, count


def norm_backward(
    upstream: Tensor,
    x: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    _check_type("norm_backward", x)
    if count < 2:
        raise ValueError(f"a norm is of more than one value, not {count}")
    sizes = _norm_sizes(x)
    given = [
        _address("the gradient", upstream, x.dtype, x.shape),
        _address("x", x),
        _address("mask", mask, torch.bool, (sizes[0], sizes[3])),
        *_parameters(x, weight=weight),
        _address("mean", mean, x.dtype, x.shape[1:2]),
        _address("variance", variance, x.dtype, x.shape[1:2]),
    ]
    x_grad, weight_grad, bias_grad = map(torch.empty_like, (x, mean, mean))
    enough = _function(_loaded(), "norm_backward", x.dtype)(
        *given,
        *(x_grad.data_ptr(), weight_grad.data_ptr(), bias_grad.data_ptr()),
        *(*sizes, count, eps, torch.get_num_threads()),
    )
    if not enough:
        raise MemoryError(f"no memory for a mask of {tuple(mask.shape)}")
    return x_grad, weight_grad, bias_grad


def _parameters(x: Tensor, **named: Tensor | None) -> list[int | None]:
    """Return the addresses of what each channel of x has one of, and None for what is None."""
    return [
        None if one is None else _address(name, one, x.dtype, x.shape[1:2])
        for name, one in named.items()
    ]
