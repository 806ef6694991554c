"""Which clips are kept, and under which motion phrase: decided in one process, from figures and captions alone."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from .caption_cache import CaptionCache
from .endpoint import AskReport, ask_endpoint
from .filters import reject
from .pack import records_of
from .params import CaptionParams, MotionParams, Thresholds
from .plan import read_part
from .rules import extract_motion
from .sources import Video
from .store import LABELS, Store, digest_of

ASK_AT_ONCE = 2000  # captions collected before the endpoint is asked

Progress = Callable[[str, int, int], None]


class Labeller:
    """Writes the `labels` manifests; the caption cache is open as long as it lives."""

    def __init__(self, store: Store, motion: MotionParams, thresholds: Thresholds, captions: CaptionParams):
        self._store, self._motion, self._thresholds, self._captions = store, motion, thresholds, captions
        self.cache = CaptionCache(captions.cache or store.folder / "captions.sqlite")
        self.asked = AskReport()

    def close(self) -> None:
        self.cache.close()

    def label(self, progress: Progress | None = None) -> None:
        """Label every part that has been measured: filter first, so that no phrase is paid for in vain."""
        parts = self._store.parts()
        done = 0
        for group in self._groups(parts):
            if self._captions.endpoint:
                wanted = [record["caption"] for _, kept, _, videos in group for record in self._to_ask(kept, videos)]
                if not self.asked.stopped_by:
                    self._add(ask_endpoint(wanted, self._captions, self.cache))
                else:
                    self.asked.not_asked += len(list(self.cache.unanswered(wanted)))
            for part, kept, rejected, videos in group:
                self._write(part, kept, rejected, videos)
                done += 1
                if progress:
                    progress("label", done, len(parts))

    def _groups(self, parts: list[int]) -> Iterator[list[tuple[int, list[dict], dict[str, list[str]], list[Video]]]]:
        group, captions = [], 0
        for part in parts:
            videos = read_part(self._store, part)
            kept, rejected = [], {}
            for record in records_of(self._store, part, videos, self._motion.mask_rule):
                reasons = reject(record, self._thresholds)
                if reasons:
                    rejected[record["key"]] = reasons
                else:
                    kept.append(record)
            group.append((part, kept, rejected, videos))
            captions += len(kept)
            if captions >= ASK_AT_ONCE:
                yield group
                group, captions = [], 0
        if group:
            yield group

    def _to_ask(self, kept: list[dict], videos: list[Video]) -> list[dict]:
        return [record for record in kept if not videos[record["video_index"]].motion]

    def _write(self, part: int, kept: list[dict], rejected: dict[str, list[str]], videos: list[Video]) -> None:
        records = {record["key"]: {**record, **self._phrase(videos[record["video_index"]])} for record in kept}
        content = {"kept": records, "rejected": rejected}
        digest = digest_of(content)
        if self._store.digest(LABELS, part) != digest:
            self._store.write(LABELS, part, {"digest": digest, **content})

    def _phrase(self, video: Video) -> dict[str, Any]:
        """The source's own phrase, the endpoint's, or the rules', in this order; it says whose it is."""
        if video.motion:
            return {"motion_prompt": video.motion, "objects": [], "motion_source": "source"}
        answer = self.cache.answer(video.caption) if self._captions.endpoint else None
        if answer is not None:
            return {"motion_prompt": answer.motion, "objects": list(answer.objects), "motion_source": "endpoint"}
        motion = extract_motion(video.caption)
        return {"motion_prompt": motion.phrase, "objects": list(motion.objects), "motion_source": "rules"}

    def _add(self, report: AskReport) -> None:
        total = self.asked
        for name in ("asked", "answered", "quarantined", "malformed", "not_asked"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        for reason, count in report.failed.items():
            total.failed[reason] = total.failed.get(reason, 0) + count
        total.stopped_by = total.stopped_by or report.stopped_by

    def summary(self) -> dict[str, Any]:
        """For the report: what was asked this time, and what the cache holds."""
        return {
            **asdict(self.asked),
            "in_quarantine": self.cache.quarantined(),
            "tokens_spent": self.cache.tokens_spent,
            "requests_paid": self.cache.requests,
        }
