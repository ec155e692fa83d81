"""What an installed wheel must do, run by the Python of an environment with torch alone.

`make wheel` and test_wheel.py run it; only torch and the standard library can be imported here.
"""

import doctest
import importlib.util
import pkgutil
import sysconfig
from importlib.metadata import files
from pathlib import Path
from unittest import mock

import torch

import regain
from regain import kernels


def check_site() -> None:
    site = Path(sysconfig.get_path("purelib"))
    assert Path(regain.__file__).parent == site / "regain", f"{regain.__file__} is not installed"
    tops = {file.parts[0] for file in files("regain") or []}
    assert {top.partition("-")[0] for top in tops} == {"regain"}, f"installed: {sorted(tops)}"
    for name in ("modules", "tasks", "study", "tests", "hubconf", "lightning", "numpy"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed, too"


def check_examples() -> int:
    lines = 0
    for info in pkgutil.iter_modules(regain.__path__):
        module = importlib.import_module(f"regain.{info.name}")
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not result.failed, f"examples of {module.__name__} fail"
        lines += result.attempted
    assert lines, "no example was found"
    return lines


def check_kernels() -> None:
    assert kernels.compiled_kernels() is not None, "the kernels were not compiled"
    assert list(kernels._folder().iterdir()), "the compiled kernels were not kept"
    x = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    with mock.patch.object(kernels, "norm_forward", wraps=kernels.norm_forward) as loop:
        compiled = regain.masked_norm(4, dims=1)(x, mask)
    assert loop.called, "the norm did not use the compiled kernels"
    with mock.patch.object(kernels, "compiled_kernels", return_value=None):
        torch.testing.assert_close(regain.masked_norm(4, dims=1)(x, mask), compiled)


if __name__ == "__main__":
    check_site()
    lines = check_examples()
    check_kernels()
    print(f"{regain.__file__}: {lines} lines of examples, and the compiled kernels, work")
