"""Images or clips in one folder per class, optionally below one folder per split.

`datasets` reads such folders too, but skips links to folders, reads `train 7.png` as a split, and
does not know `TEST`.
"""

from pathlib import Path

from tasks.data.files import files_below
from tasks.data.loading import SPLIT_NAMES, Rows, Source
from tasks.errors import InputError

# More suffixes of images and clips; decoding rejects these formats by name.
FURTHER = {"image": {".avif", ".heic", ".heif"}, "audio": {".aac", ".amr", ".m4a", ".oga"}}
# Folders with one of these are left to `datasets`.
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet", "dataset_infos.json"}
PACKED = {".parquet", ".arrow", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
LAYOUT = "files lie in CLASS/FILE or SPLIT/CLASS/FILE"


def read_class_folders(root: Path, kind: str) -> Source | None:
    """Read a folder of class folders; None if it has another layout.

    Args:
        root: The folder.
        kind: "image" or "audio".

    Raises:
        InputError: A file is in no class folder, or some are in split folders and some are not.
    """
    found = files_below(root)
    suffixes = file_suffixes(kind)
    files = [file for file in found.files if file.suffix.lower() in suffixes]
    others = {file.name.lower() for file in found.files}
    if not files or others & METADATA or _is_hub_copy(root):
        return None
    if any(Path(name).suffix in PACKED for name in others):
        return None
    for one, other in found.doubles:
        raise InputError(f"DATA={root}: {one} and {other} are one folder; delete one of the links")
    # The folders of each file; the last one is its class.
    parts = {file: file.relative_to(root).parent.parts for file in files}
    depths = {len(folders): file for file, folders in parts.items()}
    if len(depths) > 1 or 0 in depths:
        shown = " and ".join(str(file) for file in list(depths.values())[:2])
        raise InputError(f"DATA={root}: {shown}: {LAYOUT}, all at the same depth")
    folders_of = {file: _split(folders) for file, folders in parts.items()}
    names = {folder for folder in folders_of.values() if folder}
    if names and "" in folders_of.values():
        lost = next(file for file, folder in folders_of.items() if not folder)
        raise InputError(
            f"DATA={root}: {lost} is in no folder of a split, and others are ({_listed(names)})"
        )
    classes = sorted({folders[-1] for folders in parts.values()})
    if all(_alias(name) for name in classes):
        raise InputError(f"DATA={root}: {_listed(classes)} hold no folders of classes; {LAYOUT}")
    of_split: dict[str, list[Path]] = {}
    for split in SPLIT_NAMES:
        own = {name for name in names if _alias(name) == split}
        if len(own) > 1:
            raise InputError(f"DATA={root}: {_listed(own)} are folders of one split")
        if own:
            of_split[split] = [file for file in files if folders_of[file] in own]
    if not names:
        of_split["train"] = files
    if "train" not in of_split:
        raise InputError(f"DATA={root}: no split named train, only {_listed(names)}")
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {
        split: Rows(
            [{"bytes": None, "path": str(file)} for file in mine],
            [numbers[parts[file][-1]] for file in mine],
        )
        for split, mine in of_split.items()
    }
    return Source(splits, classes)


def file_suffixes(kind: str) -> set[str]:
    """Return the suffixes, in lower case, of files that hold an image or a clip.

    Args:
        kind: "image" or "audio".
    """
    if kind == "image":
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as Known
    else:
        from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder as Known
    return {*Known.EXTENSIONS, *FURTHER[kind]}


def _is_hub_copy(root: Path) -> bool:
    """Whether a folder is a copy of a hub data set, whose page lists the data files."""
    page = root / "README.md"
    return page.is_file() and "\nconfigs:" in page.read_text(encoding="utf-8", errors="replace")


def _split(folders: tuple[str, ...]) -> str:
    """Return the split folder among the folders of a file, except its class folder."""
    return next((folder for folder in folders[:-1] if _alias(folder)), "")


def _alias(folder: str) -> str | None:
    """Return the split that a folder name means; None if it means none."""
    for split, aliases in SPLIT_NAMES.items():
        if folder.lower() in aliases:
            return split
    return None


def _listed(names: set[str] | list[str]) -> str:
    return ", ".join(sorted(names))
