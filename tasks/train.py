"""The command line: one run of one task, from configurations to a test score.

`python -m tasks.train --task vision --reg both --data builtin --seed 0` stacks the configurations
of `configs/` and hands every further argument to LightningCLI, so that each key can be set:
`--model.reg.dropout=0.2 --trainer.max_epochs=5`.
"""

from tasks.run.command_line import parse
from tasks.run.fit import train
from tasks.run.process import error_exits, prepare_process

__all__ = ["main", "parse", "train"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can fix is one line and exit code 2."""
    with error_exits():
        prepare_process()
        train(*parse(arguments))


if __name__ == "__main__":
    main()
