"""The private API of Lightning, wandb and PyTorch that runs use exists.

If one of these tests fails after an upgrade, fix the code that uses this part of the API before
looking at other failures.
"""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_utilities.core.imports import RequirementCache
from packaging.requirements import Requirement

from tasks.run.lightning_internals import OpenedLogger, averaged_model
from tasks.run.wandb_internals import LazyTemporaryDirectory, wandb

ROOT = Path(__file__).parents[2]
# The private API that is used: attributes of modules, or of classes in them.
USED = [
    ("wandb.sdk.lib.module", "unset_globals"),
    ("wandb.sdk.mailbox", "HandleAbandonedError"),
    ("wandb.sdk.mailbox", "MailboxClosedError"),
    ("wandb.errors.term", "termsetup"),
    ("wandb", "Run._detect_and_apply_job_inputs"),
    ("wandb", "teardown"),
    ("wandb.sdk.artifacts._internal_artifact", "InternalArtifact"),
    ("wandb.sdk.interface.interface", "InterfaceBase.publish_artifact"),
    ("wandb.sdk.data_types._private", "MEDIA_TMP"),
    ("wandb.proto.wandb_internal_pb2", "Record"),
    ("wandb", "Artifact._TMP_DIR"),
    ("lightning_utilities.core.imports", "RequirementCache._check_available"),
    ("lightning.pytorch.loops.training_epoch_loop", "_TrainingEpochLoop.update_restart_stage"),
    ("lightning.pytorch.loops.training_epoch_loop", "_TrainingEpochLoop.restarting"),
    ("lightning.fabric.loggers.logger", "rank_zero_experiment"),
    ("torch.nn.modules.batchnorm", "_BatchNorm.forward"),
    ("torch.nn.modules.batchnorm", "_NormBase"),
    ("torch._higher_order_ops.scan", "scan"),
]


@pytest.mark.parametrize(("module", "name"), USED)
def test_a_private_name_exists(module: str, name: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name} is gone: this version has none"
        found = getattr(found, part)


@pytest.mark.parametrize("name", ["x_transaction_log_flush_interval", "sync_dir", "base_url"])
def test_a_setting_of_wandb_exists(name: str) -> None:
    assert hasattr(wandb.Settings(), name), f"wandb.Settings has no {name}"


def test_the_logger_of_lightning_keeps_its_run_and_its_options_where_they_were(
    tmp_path: Path,
) -> None:
    logger = OpenedLogger(save_dir=str(tmp_path), project="here", id=None)
    assert logger.options.keys() >= {"dir", "id", "project"}, "WandbLogger._wandb_init has changed"
    assert "anonymous" not in logger.options
    assert logger.run is None, "WandbLogger._experiment has changed"
    logger.run = opened = wandb.init(mode="disabled")
    assert logger.experiment is opened
    opened.finish()


def test_the_average_of_lightning_is_kept_where_it_was() -> None:
    assert averaged_model(EMAWeightAveraging(decay=0.9)) is None


def test_the_counters_of_a_checkpoint_are_named_as_they_were() -> None:
    from lightning.pytorch import Trainer

    trainer: Any = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    state = trainer.fit_loop.state_dict()
    for name in (
        *("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"),
        "epoch_loop.val_loop.batch_progress",
    ):
        assert name in state, f"the state of Lightning's fit loop has no {name}"
    assert "_batches_that_stepped" in state["epoch_loop.state_dict"]
    progress = state["epoch_loop.batch_progress"]
    assert progress.keys() >= {"total", "current", "is_last_batch"}
    assert progress["current"].keys() == {"ready", "started", "processed", "completed"}


def test_the_check_for_installed_packages_has_its_arguments() -> None:
    assert list(inspect.signature(RequirementCache._check_available).parameters) == ["self"]
    assert hasattr(RequirementCache("torch"), "requirement")


@pytest.mark.parametrize(
    "package", ["lightning", "lightning-utilities", "wandb", "datasets", "transformers"]
)
def test_a_package_whose_private_parts_are_used_has_an_upper_bound(package: str) -> None:
    found = [Requirement(one) for one in requires("regain") or []]
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    [line] = [line.strip(' ",') for line in lines if line.strip().startswith(f'"{package}>')]
    assert any(one.operator == "<" for one in Requirement(line).specifier)
    assert any(one.name == package for one in found)


def test_private_parts_are_used_in_one_file_for_each_package() -> None:
    files = [file for file in (ROOT / "tasks").rglob("*.py") if "_internals" not in file.name]
    for file in files:
        text = file.read_text()
        for name in (
            *("wandb.sdk", "_wandb_init", "._experiment", "_detect_and_apply", "unset_globals"),
            *("._interface", "._config."),
            *("._average_model", "_batches_that_stepped", "update_restart_stage", "wandb._"),
        ):
            assert name not in text, f"{file} uses {name}"


def test_wandb_leaves_nothing_in_the_temporary_folder_of_a_process_that_is_killed(
    tmp_path: Path,
) -> None:
    program = (
        "import os, signal, sys\n"
        "from tasks.run.tracking import RunLogger\n"
        "from tasks.run.wandb_internals import wandb\n"
        "logger = RunLogger(name='a', save_dir='run')\n"
        "logger.log_media(lambda: {'table': wandb.Table(columns=['a'], data=[[1]])})\n"
        "logger.log_media(lambda: {'plot': wandb.Html('<p>')})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = tmp_path / "temporary"
    place.mkdir()
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    env |= {"TMPDIR": str(place), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not [path.name for path in place.iterdir() if "wandb" in path.name]
    left = {path.name.partition("wandb-")[2] for path in Path("run").glob("tmp*wandb-*")}
    assert "media" in left
    assert left <= {one.suffix.partition("wandb-")[2] for one in LazyTemporaryDirectory.all} | {
        "media"
    }
