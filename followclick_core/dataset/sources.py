"""What there is to build from: a folder of videos, WebVid's CSV, a JSONL, or webdataset shards.

A source is read as a stream, so ten million rows take no more memory than ten. Each entry is a Video or a Problem,
never an exception: one bad row must not cost the others.
"""

import csv
import json
import math
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
CAPTION_COLUMNS = ("name", "caption", "text")
PATH_COLUMNS = ("path", "video", "file", "filename")
# DynamiCrafter's WebVid10M-motion adds these to WebVid's columns.
DYNAMIC_COLUMNS = ("dynamic_confidence", "dynamic_wording", "dynamic_source_category")


@dataclass(frozen=True)
class Video:
    """One video and its caption.

    Attributes:
        name: Unique within the source; what reports call it.
        path: A video file, or the tar that holds it.
        offset, length: Where it lies in the tar, in bytes; length None for a file of its own.
        motion: A motion phrase that the source brings along.
        extra: The source's other columns of interest.
    """

    name: str
    path: str
    caption: str
    offset: int = 0
    length: int | None = None
    motion: str | None = None
    extra: dict[str, str | float] | None = None


@dataclass(frozen=True)
class Problem:
    """Why an entry, a video or a clip is not used."""

    name: str
    reason: str
    detail: str = ""


Entry = Video | Problem


def read_source(source: str | Path, video_folder: str | Path | None = None) -> Iterator[Entry]:
    """Stream the entries of a source, in a fixed order.

    Args:
        source: A folder of videos with .txt files beside them, or one of webdataset .tar shards; a .tar; a .csv with
            WebVid's columns (videoid, page_dir, name) or WebVid10M-motion's; a .jsonl with path and caption.
        video_folder: Where the videos of a CSV or JSONL lie (default: the list's own folder).

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: It is none of these.
    """
    source = Path(source)
    folder = Path(video_folder) if video_folder else source.parent
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}; give a folder of videos, a .csv, a .jsonl or a .tar.")
    if source.is_dir():
        return _read_folder(source)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if source.suffix == ".tar":
        return _read_tar(source, source.name)
    if source.suffix not in readers:
        raise ValueError(f"{source.name} is no source; give a folder of videos, a .csv, a .jsonl or a .tar.")
    return readers[source.suffix](source, folder)


def shown(text: str) -> str:
    """A name that any file and terminal takes: bytes that are no UTF-8 are written as escapes."""
    if not _is_strange(text):
        return text
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a half of a character, which JSON's escapes can name
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_folder(folder: Path) -> Iterator[Entry]:
    tars, others, problems = [], [], []
    for path in _walk(folder, problems):
        (tars if path.suffix.lower() == ".tar" else others).append(path)
    for path in tars:
        yield from _read_tar(path, path.relative_to(folder).as_posix())
    for path in others:
        yield _from_sidecar(path, shown(path.relative_to(folder).as_posix()))
    yield from problems


def _walk(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    """The videos and tars below a folder; subfolders that cannot be listed are noted."""

    def note(error: OSError) -> None:
        name = os.path.relpath(error.filename or folder, folder)
        problems.append(Problem(shown(name), "folder is unreadable", error.strerror or str(error)))

    for parent, folders, files in os.walk(folder, onerror=note):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith((*VIDEO_SUFFIXES, ".tar")) and not name.startswith("."):
                yield Path(parent) / name


def _from_sidecar(path: Path, name: str) -> Entry:
    sidecar = path.with_suffix(".txt")
    try:
        caption = sidecar.read_bytes()
    except FileNotFoundError:
        return Problem(name, "no caption", f"there is no {shown(sidecar.name)} beside it")
    except OSError as error:
        return Problem(name, "caption is unreadable", f"{shown(sidecar.name)}: {error.strerror or error}")
    return _with_caption(Video(name, str(path), ""), caption)


def _with_caption(video: Video, caption: bytes | str | None) -> Entry:
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else (caption or "")
    except UnicodeDecodeError as error:
        return Problem(video.name, "caption is not UTF-8", f"byte {error.start}")
    if _is_strange(text):
        return Problem(video.name, "caption is not UTF-8")
    text = " ".join(text.split())
    if not text:
        return Problem(video.name, "no caption")
    return Video(video.name, video.path, text, video.offset, video.length, video.motion, video.extra)


def _read_csv(path: Path, folder: Path) -> Iterator[Entry]:
    # Bytes that are no UTF-8 come through as surrogates, so that they cost their own row and not the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        if not columns & set(CAPTION_COLUMNS) or not columns & {"videoid", *PATH_COLUMNS}:
            raise ValueError(
                f"{path.name} has the columns {', '.join(map(shown, rows.fieldnames or ['none']))}; WebVid's are "
                "videoid, page_dir and name."
            )
        number = 1
        try:
            for number, row in enumerate(rows, start=2):
                yield _from_row(row, folder, f"{path.name} row {number}")
        except csv.Error as error:
            yield Problem(f"{path.name} row {number + 1}", "list is damaged", f"{error}; what follows was not read")


def _read_jsonl(path: Path, folder: Path) -> Iterator[Entry]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path.name} line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                yield Problem(place, "caption is not UTF-8")
            # Brackets within brackets without end are a RecursionError.
            except (ValueError, RecursionError) as error:
                yield Problem(place, "list is damaged", str(error))
            else:
                if isinstance(row, dict):
                    yield _from_row(row, folder, place)
                else:
                    yield Problem(place, "list is damaged", "the line holds no object")


def _from_row(row: dict, folder: Path, place: str) -> Entry:
    cells = {key: str(value) for key, value in row.items() if isinstance(key, str) and value not in (None, "")}
    file = _file_of(cells)
    if file is None:
        return Problem(place, "list is damaged", "the row names no video")
    name = shown(cells.get("videoid") or cells.get("id") or file)
    path = folder / file
    try:
        is_file = path.is_file()
    # A name that is too long, or in a folder that is closed to us.
    except (OSError, ValueError) as error:
        return Problem(name, "file is missing", f"{shown(file)}: {getattr(error, 'strerror', None) or error}")
    if not is_file:
        return Problem(name, "file is missing", shown(file))
    caption = next((cells[key] for key in CAPTION_COLUMNS if key in cells), None)
    motion = " ".join(cells.get("motion", "").split()) or _trusted_wording(cells)
    extra: dict[str, str | float] = {
        key: _number(cells[key]) if key == "dynamic_confidence" else cells[key]
        for key in DYNAMIC_COLUMNS
        if key in cells and not _is_strange(cells[key])
    }
    motion = None if motion and _is_strange(motion) else motion
    return _with_caption(Video(name, str(path), "", motion=motion, extra=extra or None), caption)


def _file_of(cells: dict[str, str]) -> str | None:
    for key in PATH_COLUMNS:
        if key in cells:
            return cells[key]
    if "videoid" not in cells:
        return None
    # WebVid's own layout: videos/<page_dir>/<videoid>.mp4.
    return os.path.join(cells.get("page_dir", ""), f"{cells['videoid']}.mp4")


def _trusted_wording(cells: dict[str, str]) -> str | None:
    """WebVid10M-motion's phrase, where it has one: its wordings of still scenes are empty or `none`."""
    wording = " ".join(cells.get("dynamic_wording", "").split())
    return wording if wording and wording.lower() not in ("none", "null", "nan", "[]") else None


def _number(text: str) -> str | float:
    """Text stays what is no finite number: JSON, and so every manifest, has no other."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _read_tar(path: Path, name: str) -> Iterator[Entry]:
    """The videos of a webdataset shard: files of one key lie together, and its .txt or .json holds the caption."""
    group: dict[str, tarfile.TarInfo] = {}
    captions: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                member_key = member.name[: len(member.name) - len(suffix) - 1]
                if member_key != key:
                    yield from _from_group(path, f"{name}/{key}", group, captions)
                    key, group, captions = member_key, {}, {}
                if suffix in ("txt", "json"):
                    file = tar.extractfile(member)
                    captions[suffix] = file.read() if file and member.size < 1 << 20 else b""
                elif stem and f".{suffix.lower()}" in VIDEO_SUFFIXES:
                    group[suffix] = member
            yield from _from_group(path, f"{name}/{key}", group, captions)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield Problem(
            shown(name), "shard is damaged", f"{error}; what follows {shown(key) or 'its start'} was not read"
        )


def _from_group(
    path: Path, name: str, group: dict[str, tarfile.TarInfo], captions: dict[str, bytes]
) -> Iterator[Entry]:
    for member in group.values():
        video = Video(shown(name), str(path), "", member.offset_data, member.size)
        yield _with_caption(video, captions.get("txt") or _json_caption(captions.get("json")))


def _json_caption(content: bytes | None) -> bytes | str | None:
    if content is None:
        return None
    try:
        row = json.loads(content)
    except UnicodeDecodeError:
        return content
    except (ValueError, RecursionError):
        return None
    row = row if isinstance(row, dict) else {}
    return next((str(row[key]) for key in CAPTION_COLUMNS if row.get(key)), None)


def _is_strange(text: str) -> bool:
    """Holds what cannot be written as UTF-8: a stray byte that came through as a surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
