"""The random numbers of kernels.c by PyTorch operations, used without a C compiler.

They are identical bit for bit: a seed gives the same masks with and without a C compiler. Words of
32 bits are stored as int64, because PyTorch has no product of unsigned integers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .kernels import threshold

# As in kernels.c; MASKS, TIES and GAPS select independent random streams.
LANES = 32
BLOCK = 256
MASKS, TIES, GAPS = 0, 1, 2
# Counters per iteration: small enough for the processor's cache.
CHUNK = 1 << 13
LOW = 2**32 - 1


def philox(key: int, counters: Tensor, use: int, memory: Tensor | None = None) -> Tensor:
    """Return the four words of Philox4x32-10 (Salmon et al. 2011) for each counter.

    Args:
        key: Key of 64 bits.
        counters: Integers of any shape.
        use: Random stream: MASKS, TIES or GAPS.
        memory: Buffer (6, *shape), whose first four rows hold the result; allocated if None.
    """
    if memory is None:
        memory = counters.new_empty((6, *counters.shape))
    c0, c1, c2, c3, a, b = memory
    torch.bitwise_and(counters, LOW, out=c0)
    torch.bitwise_right_shift(counters, 32, out=c1)
    c2.fill_(use)
    c3.zero_()
    k0, k1 = key & LOW, key >> 32
    for _ in range(10):
        torch.mul(c0, 0xD2511F53, out=a)
        torch.mul(c2, 0xCD9E8D57, out=b)
        # The shift is arithmetic: mask the copies of the sign bit.
        torch.bitwise_right_shift(b, 32, out=c0).bitwise_and_(LOW)
        c0.bitwise_xor_(c1).bitwise_xor_(k0)
        torch.bitwise_and(b, LOW, out=c1)
        torch.bitwise_right_shift(a, 32, out=c2).bitwise_and_(LOW)
        c2.bitwise_xor_(c3).bitwise_xor_(k1)
        torch.bitwise_and(a, LOW, out=c3)
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return memory[:4]


@torch.no_grad()
def kept_values(count: int, p: float, key: int) -> Tensor:
    """Return the mask of the kernel `dropout` as `count` booleans, True where a value is kept."""
    high, low = threshold(p)
    if high == 2**16:  # A rate that rounds to 1.
        return torch.zeros(count, dtype=torch.bool, device="cpu")
    blocks = math.ceil(count / BLOCK)
    words = torch.empty(blocks, 4, LANES, dtype=torch.int32, device="cpu")
    together = min(CHUNK, blocks * LANES)
    # Allocated once: an allocation per iteration would take as long as the computation.
    memory = torch.empty(6, together, dtype=torch.int64, device="cpu")
    for start in range(0, blocks * LANES, together):
        end = min(blocks * LANES, start + together)
        counters = torch.arange(start, end, device="cpu")
        found = philox(key, counters, MASKS, memory[:, : end - start])
        words[start // LANES : end // LANES] = found.view(4, -1, LANES).transpose(0, 1)
    # With the sign bit flipped, int16 numbers compare like unsigned ones.
    random = words.view(torch.int16).view(-1)[:count].bitwise_xor_(-(2**15))
    keep = random >= high - 2**15
    ties = (random == high - 2**15).nonzero().view(-1)
    keep[ties] = philox(key, ties, TIES)[0] >= low
    return keep


@torch.no_grad()
def block_starts(rows: int, starts: int, log_stay: float, key: int) -> Tensor:
    """Return 1 where a block starts, else 0, as in the kernel `blocks`: (rows, starts).

    Args:
        rows: Number of maps.
        starts: Number of positions where a block can start.
        log_stay: Logarithm of the probability that no block starts at a position.
        key: Key of the random numbers.
    """
    found = torch.zeros(rows, starts, device="cpu")
    # The number of gaps per iteration that is enough for most rows.
    expected = -starts * math.expm1(log_stay)
    gaps = math.ceil(min(expected + 3 * math.sqrt(expected) + 1, CHUNK))
    index = torch.arange(gaps, device="cpu")
    # The rows that are not finished, and the last block start in each.
    row = torch.arange(rows, device="cpu").unsqueeze(1)
    at = torch.full_like(row, -1)
    while len(row):
        left = []
        parts = math.ceil(len(row) * gaps / CHUNK)
        for some, last in zip(row.tensor_split(parts), at.tensor_split(parts), strict=True):
            lengths = _uniform(key, some, index).log_().div_(log_stay).clamp_(max=starts)
            positions = lengths.long().add_(1).cumsum_(1).add_(last)
            inside = positions < starts
            found.view(-1)[(some * starts + positions)[inside]] = 1.0
            rest = inside[:, -1]
            left.append((some[rest], positions[rest, -1:]))
        row, at = (torch.cat(column) for column in zip(*left, strict=True))
        index = index + gaps
    return found


def _uniform(key: int, row: Tensor, index: Tensor) -> Tensor:
    """Return numbers in (0, 1] by row and index: LANES from two words, LANES from the other two."""
    counters = (row << 24) + index // (2 * LANES) * LANES + index % LANES
    w0, w1, w2, w3 = philox(key, counters, GAPS)
    second = index % (2 * LANES) >= LANES
    high, low = torch.where(second, w2, w0), torch.where(second, w3, w1)
    return ((high << 21) + (low >> 11) + 1).double().mul_(2.0**-53)


def kept_positions(
    rows: int, sizes: Sequence[int], sides: Sequence[int], log_stay: float, key: int
) -> Tensor:
    """Return booleans (rows, *sizes), False where a block covers a position."""
    # Blocks may start before the first position of a map.
    wide = [size + side - 1 for size, side in zip(sizes, sides, strict=True)]
    covered = block_starts(rows, math.prod(wide), log_stay, key).view(rows, *wide)
    # One dimension at a time: the cost grows with the sum of the sides, not with their product.
    for dim, side in enumerate(sides):
        if side > 1:
            window = [side if dim == other else 1 for other in range(3)]
            covered = torch.nn.functional.max_pool3d(covered, window, stride=1)
    return covered == 0
