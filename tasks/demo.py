"""A page in the browser that classifies images, recordings or texts with a trained model.

`python -m tasks.demo --ckpt runs/NAME/best.ckpt` serves it on this machine alone; with two
checkpoints it shows both predictions side by side.
"""

import argparse
import importlib.util
import logging
import os
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import tasks
from tasks.errors import InputError
from tasks.inference.options import add_trust_option
from tasks.inference.runs import required_checkpoint
from tasks.run.process import error_exits, prepare_process

# Largest upload.
MAX_FILE_SIZE = "200mb"
LAST_PORT = 65535


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.demo", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--ckpt",
        nargs="+",
        action="extend",
        default=[],
        help="one or two checkpoints, their http(s) addresses, or folders of runs [required]",
    )
    parser.add_argument("--port", type=int, default=7860, help="port, 1 to 65535 [7860]")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument(
        "--share",
        action="store_true",
        help="also create a public link for a week, through Gradio's server",
    )
    parser.add_argument(
        "--mc",
        type=_passes,
        default=20,
        metavar="PASSES",
        help="passes of Monte Carlo dropout, 0 for none [20]",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    add_trust_option(parser)
    parser.add_argument(
        "--cache_dir", default="~/.cache/regain", help="folder of decoded data, for the examples"
    )
    return parser.parse_args(arguments)


def _passes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def open_page(options: argparse.Namespace, folder: Path) -> Any:
    """Load the checkpoints and build their page.

    Args:
        options: The options of the command line.
        folder: Folder for files of examples.

    Raises:
        InputError: Gradio is not installed, or a checkpoint cannot be used.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("make demo needs Gradio: .venv/bin/pip install -e '.[demo]'")
    from tasks.demonstration.examples import builtin_examples
    from tasks.demonstration.model import Model, check_models, set_titles
    from tasks.demonstration.page import build_page

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models = [
        Model.of(tasks.load(path, device, tuple(options.trust)), path, options.mc)
        for path in options.ckpt or [required_checkpoint(None)]
    ]
    check_models(models)
    set_titles(models)
    return build_page(models, builtin_examples(models, folder, options.cache_dir))


def launch(page: Any, host: str, port: int, share: bool = False) -> str:
    """Serve a page from a thread, and return its address.

    Raises:
        InputError: The address cannot be used.
    """
    from tasks.demonstration.page import SCRIPT, STYLE, THEME

    if not 1 <= port <= LAST_PORT:
        raise InputError(f"PORT={port} is not from 1 to {LAST_PORT}; choose another PORT")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Gradio itself would not say why it fails.
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"PORT={port} on {host} cannot be used ({reason}); choose another PORT"
        ) from error
    # Gradio tests its own address, which no proxy can reach.
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", host)))
    _, address, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        inbrowser=False,
        ssr_mode=False,
        theme=THEME,
        css_paths=[STYLE],
        js=SCRIPT,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_FILE_SIZE,
    )
    return str(public or address)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user error is one line and exit code 2."""
    with error_exits(), tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        options = parse(arguments)
        prepare_process()
        # Not how the data of the examples are split.
        logging.getLogger("tasks").setLevel(logging.WARNING)
        page = open_page(options, Path(folder))
        address = launch(page, options.host, options.port, options.share)
        print(f"demo: {address} (Ctrl-C to stop)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    main()
