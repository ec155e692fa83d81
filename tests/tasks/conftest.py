"""Fixtures for tests of user errors."""

from collections.abc import Callable

import pytest

Train = Callable[..., None]


@pytest.fixture
def refused(train: Train, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail, and return its one-line error."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            train(*arguments)
        assert stopped.value.code == 2
        written = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in written if line.startswith("error: ")]
        assert len(errors) == 1
        assert errors[0] == written[-1]
        assert "Traceback" not in "\n".join(written)
        return errors[0]

    return run
