"""Calls of the C kernels of kernels.c, which are compiled once per machine.

Without a C compiler, or if the library cannot be stored or loaded, layers use slower PyTorch
operations with the same results; this is logged once. All memory that a kernel reads is checked
here, and all memory that it writes is allocated here.
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
# Not supported by every compiler; without it the kernels use one thread.
OPENMP = "-fopenmp"
# In seconds; it usually takes two.
COMPILE_TIMEOUT = 120
# Write permission of group and others.
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# Mask bits per integer.
WORD = 64
# Precision of a rate, in bits.
RATE_BITS = 48
# Largest number of block starts that 64-bit integers can count.
MAX_STARTS = 2**62

# Classes whose behaviour is known; other subclasses may override operations.
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
    """Return the cache folder of compiled kernels; the package itself may be read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # The XDG specification says to ignore a relative path.
    home = home if home.is_absolute() else Path("~/.cache").expanduser()
    return home / "regain" / "kernels"


def _check_owner(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raise an error if another user could have created or changed the file or folder."""
    status = path.lstat()
    if not is_kind(status.st_mode):
        raise PermissionError(f"{path} is a link, or not a regular file or folder")
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    if os.name == "posix" and status.st_mode & WRITABLE_BY_OTHERS:
        raise PermissionError(f"{path} is writable by other users: run chmod go-w on it")


def _compile(target: Path, compiler: list[str]) -> None:
    """Compile the kernels and move the library into place; safe for several processes at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        for threads in ([OPENMP], []):
            command = [*compiler, *FLAGS, *threads, str(SOURCE), "-o", str(library), "-lm"]
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False
            )
            if ended.returncode == 0:
                library.chmod(0o700)
                library.replace(target)
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
    """Load the kernels from the cache, after checking that no other user could write there."""
    folder = _folder()
    # An explicit mode: the umask may allow the group to write.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder, stat.S_ISDIR)
    file = folder / name
    if not os.path.lexists(file):
        _compile(file, compiler)
    _check_owner(file, stat.S_ISREG)
    return _load(file)


@functools.cache
def compiled_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None if they are not available."""
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS)).encode()).hexdigest()
        name = f"kernels-{platform.system()}-{platform.machine()}-{key[:16]}.so"
        try:
            return _cached(name, compiler)
        # `expanduser` raises RuntimeError for a user without a home folder.
        except (OSError, RuntimeError) as error:
            log.info("compiled kernels are not cached: %s", error)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            _compile(file, compiler)
            return _load(file)
    # `shlex.split` raises ValueError if CC has unbalanced quotes.
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        log.info("layers run without compiled kernels, more slowly: %s", error)
        return None


@functools.cache
def _function(loaded: ctypes.CDLL, name: str, dtype: torch.dtype) -> Any:
    return getattr(loaded, f"{name}_{str(dtype).removeprefix('torch.')}")


def _loaded() -> ctypes.CDLL:
    loaded = compiled_kernels()
    assert loaded is not None, "a kernel was called although `usable` is false"
    return loaded


def _is_plain(x: Any) -> bool:
    """Whether `x` is a tensor with all its values in CPU memory."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        # A lazy negation is not in memory, nor are the values of a zero tensor.
        and not x.is_neg()
        and not x._is_zerotensor()
    )


def _is_traced() -> bool:
    """Whether PyTorch records or transforms operations, and so must see each of them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def has_values(x: Any) -> bool:
    """Whether Python can read the values of `x`.

    False for subclasses, for nested, sparse and meta tensors, and while operations are compiled,
    traced, batched or transformed by `torch.func`.
    """
    return (
        not _is_traced()
        and type(x) in _PLAIN
        and not x.is_meta
        and x.layout is torch.strided
        and not x.is_nested
        # A batch of gradients, as with `is_grads_batched`.
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def readable(name: str, x: Any) -> bool:
    """Whether the kernel of this name can read the memory of `x`."""
    return (
        not _is_traced()
        and _is_plain(x)
        and x.dtype in _TYPES[name]
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def usable(name: str, x: Any) -> bool:
    """Whether the kernel of this name is available and can read `x`."""
    return readable(name, x) and compiled_kernels() is not None


def _address(
    name: str,
    x: Tensor,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
    dense: bool = False,
) -> int:
    """Return the address of a tensor, after checking that a kernel can read it.

    Args:
        name: Name of the tensor in errors.
        x: The tensor.
        dtype: Required type; any if None.
        shape: Required shape; any if None.
        dense: Whether the dimensions may have any order in memory.

    Raises:
        ValueError: The tensor has another class, type, shape or layout.
    """
    if not _is_plain(x):
        raise ValueError(f"{name} is not a plain tensor on the CPU: {type(x).__name__}")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name} has the type {dtype}, not {x.dtype}")
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
    """Return scale * x + shift where a value is kept, else `dropped`; and the mask as bits."""
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
    """Return the thresholds for 16-bit random numbers and, in a tie, for 32 more bits."""
    high, low = divmod(round(p * 2**RATE_BITS), 2**32)
    return high, low


def apply(x: Tensor, bits: Tensor, rows: int, scale: float) -> Tensor:
    """Return scale * x where a bit is set, else zero; the bits of each row start a new word."""
    _check_type("apply", x)
    if rows < 1 or x.numel() % rows:
        raise ValueError(f"{x.numel()} values do not divide into {rows} rows")
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
    """Return the mask of each map as bits, zero where a block covers a position.

    Args:
        rows: Number of maps.
        sizes: Three sizes of a map.
        sides: Three sides of a block.
        log_stay: Logarithm of the probability that no block starts at a position.
        key: Key of the random numbers.
    """
    if len(sizes) != 3 or len(sides) != 3 or min(rows, *sizes, *sides) < 1:
        raise ValueError(f"invalid sizes: blocks of {sides} in {rows} maps of {sizes}")
    if math.prod(map(sum, zip(sizes, sides, strict=True))) * rows > MAX_STARTS:
        raise ValueError(
            f"blocks of {sides} in {rows} maps of {sizes} are too large: more than 2**62 positions"
        )
    if not -math.inf < log_stay < 0.0:
        raise ValueError(
            f"log_stay is a negative, finite logarithm of a probability, not {log_stay!r}"
        )
    words = math.ceil(math.prod(sizes) / WORD)
    bits = torch.empty(rows, words, dtype=torch.int64, device="cpu")
    shapes = (ctypes.c_int64 * 6)(*sizes, *sides)
    start = ctypes.addressof(shapes)
    enough = _loaded().blocks(
        *(bits.data_ptr(), rows, start, start + 3 * ctypes.sizeof(ctypes.c_int64)),
        *(log_stay, key, torch.get_num_threads()),
    )
    if not enough:
        raise MemoryError(f"out of memory for masks of shape {sizes}")
    return bits


def _norm_sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return batch, channels, lines and steps of (batch, channels, ..., time)."""
    if x.dim() < 2 or not x.numel():
        raise ValueError(
            f"a norm needs (batch, channels, ..., time), not an input of shape {tuple(x.shape)}"
        )
    batch, channels, *inner = x.shape
    # A vector has a single step.
    steps = inner[-1] if inner else 1
    return batch, channels, math.prod(inner) // steps, steps


def norm_forward(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return batch norm over the valid steps, mean, variance, and the number of values per channel.

    With fewer than two values per channel only their number is valid.
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
        raise ValueError(f"a norm needs more than one value per channel, not {count}")
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
    """Return the addresses of tensors with one value per channel of x; None for None."""
    return [
        None if one is None else _address(name, one, x.dtype, x.shape[1:2])
        for name, one in named.items()
    ]
