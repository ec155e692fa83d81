"""Residual blocks of few channels: their shortcut is computed without a strided convolution."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regain import Regularization
from tasks.vision.models import NARROW, ResidualBlock, WideBlock

# 400 steps as in a training; corrupted memory ends the process within a few dozen.
TRAINING = """
import torch
from torch import nn
from regain import Regularization
from tasks.vision.models import {block}

torch.set_num_threads(1)
block = {block}(4, 8, 2, Regularization(), nn.Identity()).to(memory_format=torch.channels_last)
made = []
for step in range(400):
    x = torch.randn(16, 4, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    block(x).square().mean().backward()
    # Small blocks of memory, in which errors are noticed.
    made.append(torch.zeros(3 + step % 7))
"""


@pytest.mark.parametrize("block", ["ResidualBlock", "WideBlock"])
def test_a_narrow_block_trains_without_corrupting_memory(block: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TRAINING.format(block=block)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("inputs", [NARROW - 1, NARROW])
@pytest.mark.parametrize("block", [ResidualBlock, WideBlock])
def test_the_shortcut_is_that_of_a_strided_convolution(block: type[nn.Module], inputs: int) -> None:
    x = torch.randn(2, inputs, 7, 8)
    # With the last norm or convolution at zero, the block returns its shortcut.
    one = block(inputs, 6, 2, Regularization(), nn.Identity()).eval()
    kept = one.shortcut[0] if isinstance(one.shortcut, nn.Sequential) else one.shortcut
    expected = F.conv2d(x.relu() if block is WideBlock else x, kept.weight, kept.bias, stride=2)
    expected = expected.relu() if block is ResidualBlock else expected
    torch.testing.assert_close(one(x), expected)
