"""Writing files so that whoever reads them finds a whole file or none.

Each writer fills a temporary name in the same folder, which is then renamed over the real one: a rename within a folder
is atomic, so neither an error, Ctrl-C nor a full disk leaves half a file behind.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that becomes `path` when the block ends without an error.

    The block may make a file or a folder there. A folder that stands at `path` already is replaced as a whole, so the
    caller must know that nothing else is in it.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: The file system refuses: read-only, full, or a folder stands where a file should go.
    """
    path = Path(path)
    _require_folder(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        _move_into_place(temporary, path)
    except OSError as error:
        raise ValueError(_cannot_write(path, error)) from error
    finally:
        _remove(temporary)


def check_writable(path: str | Path) -> None:
    """Raise the error that writing `path` would raise, before the minutes of work that lead to it.

    A file is really made and removed again, since permission bits say little (a root user, a read-only mount).

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: The folder cannot be written, or `path` is a folder.
    """
    path = Path(path)
    _require_folder(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, where a file is to be written; give the file a name of its own.")
    probe = path.with_name(f".{path.stem}-{secrets.token_hex(4)}")
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise ValueError(_cannot_write(path, error)) from error
    finally:
        _remove(probe)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Numbers that JSON does not have (NaN) are refused."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require_folder(path: Path) -> None:
    if path.name in ("", ".."):
        raise ValueError(f"{path} is not the name of a file; give one, such as out.webp.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; create it first.")


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise IsADirectoryError(None, "a folder of that name is in the way")
    # A folder cannot be renamed over one that holds files, so the old one steps aside for a moment.
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> str:
    return f"{path} cannot be written ({error.strerror or error}); name another place or free this one."
