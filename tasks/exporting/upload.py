"""Upload of an exported folder to the Hugging Face hub."""

import re
from pathlib import Path

from tasks.errors import InputError, first_line
from tasks.model_libraries import reachable


def check_repository(name: str) -> None:
    """Check the name of a repository before anything is exported.

    Raises:
        InputError: It is not of the form OWNER/NAME.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"--push={name!r:.80} is no repository; give OWNER/NAME")


def push(folder: Path, name: str) -> str:
    """Upload a folder to a repository, which is created if it does not exist.

    Args:
        folder: The exported folder.
        name: The repository, as OWNER/NAME.

    Returns:
        The address of the commit.

    Raises:
        InputError: The hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    kept = f"the export is in {folder}"
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise InputError(f"--push={name}: {constants.ENDPOINT} cannot be reached; {kept}")
    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Export of a checkpoint by regain"
        )
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push={name} needs an account: log in with `hf auth login`, or set HF_TOKEN; {kept}"
        ) from error
    except Exception as error:
        # Of the server, the network, or a name that the hub does not allow.
        reason = first_line(error)
        raise InputError(f"--push={name} failed ({reason}); {kept}") from error
    return str(commit)
