"""Environments of Python with some of the installed packages alone, made without a network."""

import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """Collect the distributions that one needs."""
    found.add(canonicalize_name(name))
    for line in distribution(name).requires or []:
        one = Requirement(line)
        wanted = [{"extra": extra} for extra in (extras or {""})]
        if one.marker and not any(map(one.marker.evaluate, wanted)):
            continue
        if one.extras or canonicalize_name(one.name) not in found:
            closure(one.name, frozenset(one.extras), found)
    return found


def environment(folder: Path, *names: str) -> Path:
    """Make an environment with links to packages and to what they need, and return its Python."""
    venv.create(folder)
    [site] = folder.glob("lib/python*/site-packages")
    for name in set().union(*(closure(name, frozenset(), set()) for name in names)):
        held = distribution(name)
        tops = {file.parts[0] for file in held.files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(held.locate_file(top))))
    return folder / "bin/python"
