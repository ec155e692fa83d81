"""Compiled kernels come from the compiler, or from a cache that only the user can write."""

import ctypes
import errno
import logging
import os
import pwd
import shutil
import stat
from pathlib import Path

import pytest
import torch

from regain import Dropout, kernels
from regain.cpudropout import bitmask_dropout

needs_kernels = pytest.mark.skipif(
    kernels.compiled_kernels() is None,
    reason="there is no C compiler here, and so no kernel to test",
)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache of kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.compiled_kernels.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    kernels.compiled_kernels.cache_clear()


def compiler(folder, script):
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return str(file)


@pytest.mark.parametrize("script", ["echo no such thing >&2; exit 1", None])
def test_without_a_compiler_layers_work_and_the_log_says_why(fresh, monkeypatch, caplog, script):
    monkeypatch.setenv("CC", compiler(fresh, script) if script else "no-such-compiler")
    with caplog.at_level(logging.INFO):
        assert (Dropout(0.5)(torch.ones(5000)) == 0).any()
        Dropout(0.5)(torch.ones(5000))
    assert caplog.text.count("without compiled kernels") == 1
    assert ("no such thing" if script else "no-such-compiler") in caplog.text
    assert not list((fresh / "regain" / "kernels").iterdir())


@pytest.mark.parametrize("broken", ['cc "', "cc '-O2", "cc \\"])
def test_an_invalid_cc_variable_is_the_same_as_no_compiler(fresh, monkeypatch, caplog, broken):
    monkeypatch.setenv("CC", broken)
    with caplog.at_level(logging.INFO):
        assert (Dropout(0.5)(torch.ones(5000)) == 0).any()
    assert "without compiled kernels" in caplog.text


def test_without_the_source_there_are_no_kernels(fresh, monkeypatch):
    monkeypatch.setattr(kernels, "SOURCE", fresh / "none.c")
    assert (Dropout(0.5)(torch.ones(5000)) == 0).any()


@needs_kernels
def test_a_compiler_without_openmp_is_used(fresh, monkeypatch):
    script = 'case "$*" in *-fopenmp*) exit 1;; esac; exec cc "$@"'
    monkeypatch.setenv("CC", compiler(fresh, script))
    assert kernels.compiled_kernels() is not None
    assert (bitmask_dropout(torch.ones(50_000), 0.5) == 0).any()


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """A cache of compiled kernels, shared by the tests below."""
    file = tmp_path_factory.mktemp("library") / "kernels.so"
    kernels._compile(file, ["cc"])
    return file


@pytest.fixture
def loads(fresh, library, monkeypatch):
    """The file of each load of the kernels."""
    found = []
    real = ctypes.CDLL

    def load(name, *args):
        if "kernels" in str(name):
            found.append(Path(name))
        return real(name, *args)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(kernels, "_compile", lambda target, _: shutil.copy(library, target))
    return found


def ask_again():
    kernels.compiled_kernels.cache_clear()
    assert kernels.compiled_kernels() is not None


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@needs_kernels
@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.chmod(0o777), "is writable by other users"),
        (lambda path: path.chmod(0o770), "is writable by other users"),
        (lambda path: path.chmod(0o702), "is writable by other users"),
        (linked, "is a link"),
    ],
    ids=["all", "group", "others", "link"],
)
def test_a_cache_that_others_can_write_to_is_not_used(fresh, loads, caplog, which, spoil, reason):
    ask_again()
    cached = loads[0]
    assert cached.parent == fresh / "regain" / "kernels"
    spoil(cached.parent if which == "folder" else cached)
    with caplog.at_level(logging.INFO):
        ask_again()
    assert cached != loads[1]
    assert not loads[1].is_relative_to(fresh)
    # Its temporary folder was private, and is deleted.
    assert not loads[1].parent.exists()
    assert reason in caplog.text
    assert (bitmask_dropout(torch.ones(5000), 0.5) == 0).any()


@needs_kernels
def test_a_cache_of_another_user_is_not_used(fresh, loads, monkeypatch, caplog):
    ask_again()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with caplog.at_level(logging.INFO):
        ask_again()
    assert loads[0] != loads[1]
    assert "belongs to another user" in caplog.text


@needs_kernels
def test_a_cache_is_used_again_whatever_the_umask(fresh, loads):
    before = os.umask(0o002)
    try:
        ask_again()
        ask_again()
    finally:
        os.umask(before)
    assert loads[0] == loads[1]
    assert stat.S_IMODE(loads[0].parent.stat().st_mode) == 0o700


@needs_kernels
def test_only_the_user_can_read_the_compiled_library(library):
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@needs_kernels
def test_without_a_home_kernels_are_compiled_for_the_process(fresh, loads, monkeypatch):
    def nobody(_):
        raise KeyError("no such user")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    ask_again()
    assert not loads[0].exists()


@needs_kernels
def test_a_relative_cache_folder_is_ignored(fresh, loads, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(fresh))
    monkeypatch.chdir(fresh)
    ask_again()
    assert loads[0].is_relative_to(fresh / ".cache")


@needs_kernels
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOTDIR])
def test_without_a_writable_cache_kernels_still_work(fresh, loads, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        ask_again()
    assert not loads[0].exists()
