"""A W&B server on the loopback device, for tests of what is sent to W&B and read from it.

It keeps runs, artifacts, views and sweeps as the real one does, for the calls that this project
causes. A call that it does not know fails, and the test ends with its name.
"""

from tests.loopback.server import Server, wandb_server
from tests.loopback.session import PATIENCE, log_in, wait_long, wandb_session

__all__ = ["PATIENCE", "Server", "log_in", "wait_long", "wandb_server", "wandb_session"]
