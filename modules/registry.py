"""Registries: classes and functions found by a short name or an import path."""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

# More names than these are counted in an error instead of listed.
MAX_LISTED = 100

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Generic[Entry]):
    """Classes or functions of one kind by name.

    A decorator beside the definition registers an entry. Other classes and functions are found by
    their import path, `package.module:Name` or `path/to/file.py:Name`.

    Args:
        kind: Name of the kind in errors, such as `dropout_kind`.

    Example:
        >>> losses: Registry = Registry("loss")
        >>> @losses.register("absolute")
        ... def absolute(x, y):
        ...     return abs(x - y)
        >>> losses.find("absolute")(3, 5)
        2
        >>> losses.find("math:dist").__name__
        'dist'
        >>> losses.find("absolut")
        Traceback (most recent call last):
        ...
        ValueError: loss=absolut is not known; did you mean absolute?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers a class or function under `name`.

        Raises:
            ValueError: The name is taken by another entry.
        """

        def add(entry: Entry) -> Entry:
            known = self._entries.setdefault(name, entry)
            if known is not entry and definition(known) != definition(entry):
                raise ValueError(f"{self.kind}={name} is already registered: {known}")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._entries)

    def find(self, name: str) -> Entry:
        """Return the entry of this name.

        Args:
            name: A registered name, `package.module:Name` or `path/to/file.py:Name`.

        Raises:
            ValueError: There is no such entry.
        """
        if name in self._entries:
            return self._entries[name]
        if is_import_path(name):
            found: Entry = import_object(name, self.kind)
            return found
        raise ValueError(unknown(self.kind, name, self.names()))


def definition(entry: Any) -> tuple[str, str]:
    """Return the module and qualified name of a definition, which a reload does not change."""
    return getattr(entry, "__module__", ""), getattr(entry, "__qualname__", "")


def unknown(kind: str, name: Any, known: list[str]) -> str:
    """Return the message for an unknown name, with the closest known one."""
    close = get_close_matches(str(name), known, n=1)
    listed = ", ".join(known) if len(known) <= MAX_LISTED else f"{len(known)} names"
    hint = f"did you mean {close[0]}?" if close else f"choose one of {listed}"
    return f"{kind}={name} is not known; {hint}"


def is_import_path(name: Any) -> bool:
    """Whether a name has the form `package.module:Name` or `path/to/file.py:Name`.

    Example:
        >>> is_import_path("my_net.py:Net"), is_import_path("resnet"), is_import_path("s3://data")
        (True, False, False)
    """
    module, colon, attribute = str(name).rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and attribute.isidentifier() and (module.endswith(".py") or dotted)


def import_object(name: str, kind: str) -> Any:
    """Import `package.module:Name` or `path/to/file.py:Name`.

    Args:
        name: The import path.
        kind: Name of the kind in errors.

    Raises:
        ValueError: There is no such file, module or name, it raises an error when it is imported,
            or it cannot be called.
    """
    module_name, _, attribute = name.rpartition(":")
    file = Path(module_name).expanduser() if module_name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(f"{kind}={name}: there is no file {file}")
    try:
        module = _module_of_file(file) if file else importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            raise ValueError(f"{kind}={name}: {error}") from error
        # The file is the user's: it may fail in any way.
        where = locate(error, str(file or module_name))
        raise ValueError(f"{kind}={name} cannot be imported: {where}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        close = get_close_matches(attribute, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{kind}={name}: {module_name} has no class or function {attribute}{hint}")
    return found


def locate(error: BaseException, file: str | None = None) -> str:
    """Describe an error in one line, with the file and line it comes from.

    Args:
        error: The error.
        file: The file whose last line in the traceback is named; the last of all if None, or if
            the error did not pass through it.

    Example:
        >>> try:
        ...     int("x")
        ... except ValueError as error:
        ...     print(locate(error).partition(" (")[0])
        ValueError: invalid literal for int() with base 10: 'x'
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
    ]
    name = None if file is None else Path(file).name
    of_file = [frame for frame in frames if Path(frame.filename).name == name]
    for frame in (of_file or frames)[-1:]:
        text += f" ({frame.filename}, line {frame.lineno})"
    return text


def _module_of_file(file: Path) -> Any:
    file = file.resolve()
    # The hash distinguishes files with the same name. Each file is executed once.
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    # As for a script, files in the same folder can be imported.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
