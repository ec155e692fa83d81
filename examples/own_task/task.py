"""Classification of tables: a task outside of the project, with its own data, model and presets.

`make train TASK=examples/own_task/task.py:TableTask` trains it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from table_model import MODELS

from regain import Regularization
from tasks.base import ClassificationTask
from tasks.building import build_model
from tasks.data import ClassificationData, DataSpec, Rows, Source
from tasks.errors import InputError
from tasks.optimization import Optimization
from tasks.training import TrainingRegularization

HERE = Path(__file__).parent


@dataclass
class TableSpec(DataSpec):
    """What a model must know of a table.

    Args:
        classes: Names of the classes.
        mean: Mean of each column over the training split.
        std: Standard deviation of each column, likewise.
    """

    mean: list[float]
    std: list[float]


class TableData(ClassificationData):
    """Rows of numbers, (batch, columns); a column with the label stands beside them in a file.

    `DATA=table.csv` reads a file, and `--data.label_column=NAME` names its column of labels.
    """

    noun = "row"

    def read(self) -> Source:
        """Read a CSV file; other sources are read as in every task."""
        path = Path(self.source).expanduser()
        if path.suffix == ".csv":
            return read_csv(path, self.label_column or "label")
        return super().read()

    def decode(self, value: Any) -> Any:
        """Turn one row into a tensor; an empty cell is refused."""
        if np.isnan(value).any():
            raise ValueError("it has an empty cell; fill it, or leave the row out")
        return super().decode(value)

    def spec(self) -> TableSpec:
        """Return the classes, and the mean and standard deviation of each column."""
        train = self.splits["train"]
        rows = train.values[train.chosen]
        return TableSpec(self.classes, rows.mean(0).tolist(), rows.std(0).tolist())


@TableData.sources.register("builtin")
def breast_cancer() -> Source:
    """Breast Cancer Wisconsin, from scikit-learn: 569 tumours, 30 measures of their cells each."""
    table = load_breast_cancer()
    return Source({"train": Rows(table.data, table.target.tolist())}, list(table.target_names))


def read_csv(path: Path, label: str) -> Source:
    """Read a file of columns of numbers and one of labels.

    Raises:
        InputError: It cannot be read, has no such column of labels, or other columns of text.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"DATA={path} cannot be read: {error}") from error
    if label not in table:
        columns = ", ".join(map(str, table.columns))
        raise InputError(
            f"DATA={path}: no column {label!r} among {columns}; "
            "name the labels' with --data.label_column"
        )
    inputs = table.drop(columns=label)
    text = [name for name, kind in inputs.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if text or not len(inputs.columns):
        raise InputError(
            f"DATA={path}: columns besides the label are numbers, and {', '.join(text)} are not; "
            "write them as numbers, or leave them out"
            if text
            else f"DATA={path}: there is no column besides the label"
        )
    return Source({"train": Rows(inputs.to_numpy(np.float32), table[label].tolist())})


class TableTask(ClassificationTask):
    """Classifies rows of a table.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model of `table_model.py`, or one of your own, as `path/to/file.py:Name`.
        depth: Number of hidden layers or blocks; the model's default if None.
        width: Units of a layer, likewise.
        reg: Regularization inside the model.
        training: Regularization by the training.
        optim: Optimizer and schedule.
    """

    data_class = TableData
    config = HERE / "config.yaml"
    preset_file = HERE / "presets.yaml"
    models = MODELS

    def __init__(
        self,
        spec: TableSpec,
        arch: str = "mlp",
        depth: int | None = None,
        width: int | None = None,
        reg: Regularization = Regularization(),
        training: TrainingRegularization = TrainingRegularization(),
        optim: Optimization = Optimization(),
    ) -> None:
        model = build_model(MODELS, arch, spec, reg, depth=depth, width=width)
        super().__init__(model, spec, reg, training, optim)
        # For the checkpoint, which holds these arguments.
        self.save_hyperparameters(logger=False)
