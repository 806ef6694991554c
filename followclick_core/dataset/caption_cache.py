"""What an endpoint has answered, in an SQLite file: no caption is paid for twice, and a killed run has lost nothing.

Each answer is committed as it comes. Several builds may share one file, one after another or at the same time.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TABLES = """
CREATE TABLE IF NOT EXISTS answers (caption TEXT PRIMARY KEY, motion TEXT, objects TEXT, model TEXT);
CREATE TABLE IF NOT EXISTS quarantine (caption TEXT PRIMARY KEY, problem TEXT, answer TEXT, model TEXT);
CREATE TABLE IF NOT EXISTS spent (model TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER);
"""


@dataclass(frozen=True)
class Answer:
    """A motion phrase, empty where the caption tells of no motion, and the objects that the caption names."""

    motion: str
    objects: tuple[str, ...] = ()


class CaptionCache:
    """Answers, quarantined answers and tokens spent, by caption."""

    def __init__(self, path: str | Path):
        try:
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(TABLES)
        except sqlite3.Error as error:
            raise ValueError(f"{path} is no caption cache, or cannot be written ({error}); name another.") from error

    def answer(self, caption: str) -> Answer | None:
        row = self._database.execute("SELECT motion, objects FROM answers WHERE caption = ?", [caption]).fetchone()
        return Answer(row[0], tuple(json.loads(row[1]))) if row else None

    def unanswered(self, captions: Iterable[str]) -> Iterator[str]:
        """Those that were neither answered nor put in quarantine, each once."""
        for caption in dict.fromkeys(captions):
            known = self._database.execute(
                "SELECT 1 FROM answers WHERE caption = ?1 UNION SELECT 1 FROM quarantine WHERE caption = ?1", [caption]
            )
            if known.fetchone() is None:
                yield caption

    def keep(self, caption: str, answer: Answer, model: str) -> None:
        row = [caption, answer.motion, json.dumps(answer.objects), model]
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", row)

    def set_apart(self, caption: str, problem: str, answer: str, model: str) -> None:
        """Quarantine: a caption that got only malformed answers is not asked again."""
        # SQLite takes UTF-8 alone; the answer may be anything.
        row = [caption, *(text.encode("utf-8", "backslashreplace").decode() for text in (problem, answer)), model]
        self._database.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)", row)

    def quarantined(self) -> dict[str, str]:
        """Caption -> what was wrong with its last answer."""
        return dict(self._database.execute("SELECT caption, problem FROM quarantine ORDER BY caption"))

    def release(self) -> int:
        """Empty the quarantine, so that its captions are asked again; how many there were."""
        return self._database.execute("DELETE FROM quarantine").rowcount

    def spend(self, model: str, tokens: int) -> None:
        self._database.execute(
            "INSERT INTO spent VALUES (?1, 1, ?2) ON CONFLICT (model) DO UPDATE SET requests = requests + 1, "
            "tokens = tokens + ?2",
            [model, tokens],
        )

    @property
    def tokens_spent(self) -> int:
        return self._database.execute("SELECT coalesce(sum(tokens), 0) FROM spent").fetchone()[0]

    @property
    def requests(self) -> int:
        """Answers that were paid for, malformed ones included."""
        return self._database.execute("SELECT coalesce(sum(requests), 0) FROM spent").fetchone()[0]

    def close(self) -> None:
        self._database.close()
