"""What the commands show in a terminal: counts, durations, a live display, and how they end."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from tasks.errors import InputError

# Refresh rate of a live display.
REFRESHES_PER_SECOND = 1


def plural(count: int, name: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "seed"), plural(2, "seed")
        ('1 seed', '2 seeds')
    """
    return f"{count} {name}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> duration(50), duration(200), duration(9000)
        ('50 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def live_display(console: Console, render: Callable[[], RenderableType]) -> Iterator[Live | None]:
    """Update a display while trainings run; None if the console is not a terminal."""
    if not console.is_terminal:
        yield None
        return
    with Live(
        console=console, get_renderable=render, refresh_per_second=REFRESHES_PER_SECOND
    ) as display:
        yield display


def end_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C, so that a scheduler ends a command together with its runs."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)


@contextmanager
def restartable() -> Iterator[None]:
    """Set up the log of a command that starts trainings, and end it with one line.

    A user error has exit code 2; an interruption 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    end_on_sigterm()
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; start the same command again to continue", file=sys.stderr)
        sys.exit(130)
