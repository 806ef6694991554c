"""Webdataset tars: written whole, and read sample by sample without reading the rest."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import atomic_path


@contextmanager
def open_tar_writer(path: Path) -> Iterator[Any]:
    """webdataset's TarWriter on a file that appears when the block ends; equal samples give equal bytes."""
    from webdataset.writer import TarWriter

    with atomic_path(path) as temporary, TarWriter(str(temporary), mtime=0) as writer:
        yield writer


class TarIndex:
    """The samples of a webdataset tar by key. Only where they lie is in memory, and no file stays open, so a copy of it
    works in every process."""

    def __init__(self, path: Path):
        self._path = path
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    self._places.setdefault(key, {})[suffix] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and its .json and build again.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def read(self, key: str, prefix: str = "") -> dict[str, bytes]:
        """The files of a sample by suffix, those that begin with `prefix`."""
        contents = {}
        with open(self._path, "rb") as file:
            for suffix, (offset, size) in self._places[key].items():
                if suffix.startswith(prefix):
                    file.seek(offset)
                    contents[suffix] = file.read(size)
        return contents
