"""Building of a run: first the configuration, then data and trainer, then the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from regain.registry import is_import_path
from tasks.base import ClassificationTask
from tasks.building import find_model
from tasks.errors import InputError
from tasks.lookup import check_spec
from tasks.run.length import INTERVAL
from tasks.run.moved_keys import moved_arguments
from tasks.run.progress import ConfigRecorder
from tasks.run.yaml_files import check_configurations

# Exceptions that mean an invalid configuration.
INVALID_CONFIG_ERRORS = (
    *(ArgumentError, ValueError, TypeError, OverflowError, RecursionError, ZeroDivisionError),
    *(MisconfigurationException, ImportError),
)


class RunCLI(LightningCLI):
    """LightningCLI that builds the model separately, after the data that it depends on."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of trainer, model and data; the model's `spec` comes from the data."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_class_arguments(
            self._model_class,
            "model",
            fail_untyped=False,
            instantiate=False,
            sub_configs=True,
            skip={"spec"},
        )
        parser.add_lightning_class_args(self._datamodule_class, "data")
        # Not 1, so that a 1 of the user differs from the default; see `TrainingLength`.
        parser.set_defaults({f"trainer.{INTERVAL}": None})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the keys that data and model share."""
        parser.link_arguments("seed_everything", "data.seed")
        task: Any = self.model_class
        for target, (sources, function) in task.links.items():
            parser.link_arguments(sources, target, function)

    def instantiate_classes(self) -> None:
        """Build the data module, which reads nothing yet, and the trainer."""
        self.config_init = self.parser.instantiate(self.config)
        task: Any = self.model_class
        check_arch(task, self.config_init.model.get("arch"))
        trainer = self.config_init.trainer
        # With a number of steps, null is Lightning's: the steps are counted across epochs.
        if trainer[INTERVAL] is None and not isinstance(trainer.val_check_interval, int):
            trainer[INTERVAL] = 1
        self.datamodule = self.config_init.data
        self.trainer = self.instantiate_trainer()

    def build_model(self) -> ClassificationTask:
        """Build the model for the data, which must have been set up.

        Raises:
            InputError: A value does not fit this model or these data.
        """
        task: Any = self.model_class
        with invalid_config():
            spec = self.datamodule.spec()
            check_spec(task, spec, self.datamodule)
            self.model = task(spec=spec, **self.config_init.model)
        built: ClassificationTask = self.model
        return built


def check_arch(task: type[ClassificationTask], arch: str | None) -> None:
    """Check a name of an architecture before any data are read.

    Raises:
        InputError: The task has a registry of models, and this name is not in it.
    """
    # Other names with a slash are those of libraries; they are checked when the model is built.
    if task.models is not None and arch and (is_import_path(arch) or "/" not in arch):
        find_model(task.models, arch)


def build(
    task: type[ClassificationTask], arguments: list[str], callbacks: list[Callback]
) -> RunCLI:
    """Parse the configurations and build trainer and data module; no data are read.

    Raises:
        InputError: A key, type or value is wrong.
    """
    check_configurations(arguments)
    arguments = moved_arguments(arguments)
    with invalid_config():
        return RunCLI(
            task,
            task.data_class,
            save_config_callback=ConfigRecorder,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"callbacks": callbacks},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            args=arguments,
        )


@contextmanager
def invalid_config() -> Iterator[None]:
    """Convert exceptions of constructors to one line.

    Raises:
        InputError: A constructor rejected a value.
    """
    try:
        yield
    except INVALID_CONFIG_ERRORS as error:
        # Constructors check their arguments and name them.
        raise InputError(" ".join(str(error).split())) from error


def check_trainer(trainer: Any, test: bool) -> None:
    """Check for trainer settings that Lightning accepts but that cannot work.

    Raises:
        InputError: The training has no end, no steps, no validation or no test.
    """
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise InputError("trainer.max_epochs=-1 has no end; give it a number of epochs")
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0:
            raise InputError(f"trainer.{name} is at least 1, not 0")
    for name in ("accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise InputError(f"trainer.{name} is at least 1, not {value}")
    if trainer.val_check_interval == 0:
        raise InputError("trainer.val_check_interval is more than 0, not 0")
    for split in ("train", "val", "test") if test else ("train", "val"):
        if getattr(trainer, f"limit_{split}_batches") == 0:
            raise InputError(f"trainer.limit_{split}_batches=0 leaves nothing; it is more than 0")
