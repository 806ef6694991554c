"""Ask a language model for short motion phrases, as the paper did for WebVid-Motion: 50 examples in context.

Any OpenAI-compatible endpoint will do. It is asked for an object of a JSON schema; what comes is checked against it all
the same. Retries, their waits and the Retry-After header are the OpenAI client's.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .caption_cache import Answer, CaptionCache
from .params import CaptionParams
from .sources import shown

EXAMPLES_FILE = Path(__file__).with_name("examples.json")
INSTRUCTION = """\
You turn captions of video clips into short motion phrases. Answer with a JSON object: `objects` lists what the caption
names that moves or could move; `motion` is the motion of the main object in one to six words, beginning with a verb in
its base form, without the object, the place and the camera. Where the caption tells of no motion of an object, or only
of the camera's, `motion` is empty. Examples, one per line:
"""
MAX_MOTION = 80  # characters
ANSWER_TOKENS = 120
PRICE_MARGIN = 300  # tokens by which an answer may be dearer than all before: its caption is longer
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "objects": {"type": "array", "items": {"type": "string"}},
        "motion": {"type": "string"},
    },
    "required": ["objects", "motion"],
    "additionalProperties": False,
}


@dataclass
class AskReport:
    """What came of asking. Captions that failed are asked again by the next run; quarantined ones are not."""

    asked: int = 0
    answered: int = 0
    quarantined: int = 0
    malformed: int = 0  # answers, of which a caption may get several
    failed: dict[str, int] = field(default_factory=dict)  # reason -> captions
    not_asked: int = 0  # once the budget was spent or the endpoint given up
    stopped_by: str = ""


class MalformedAnswerError(ValueError):
    """The endpoint answered, but not what was asked for."""


def ask_endpoint(
    captions: Iterable[str],
    params: CaptionParams,
    cache: CaptionCache,
    progress: Callable[[int], None] | None = None,
) -> AskReport:
    """Ask for the phrases of all captions that the cache does not know, and put the answers there.

    Nothing that the endpoint does is fatal. It is given up after as many failures in a row as requests run at a time;
    what is then left counts as not asked.
    """
    pending = list(cache.unanswered(captions))
    return asyncio.run(_Asker(params, cache, progress).ask(pending)) if pending else AskReport()


@lru_cache(maxsize=1)
def load_examples() -> list[dict[str, Any]]:
    """The 50 in-context examples: caption, objects, motion."""
    return json.loads(EXAMPLES_FILE.read_text(encoding="utf-8"))


def messages_for(caption: str) -> list[dict[str, str]]:
    """The conversation that asks for one caption; all but its last line is the same each time, so it can be cached."""
    examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in load_examples())
    question = json.dumps({"caption": caption}, ensure_ascii=False)
    return [{"role": "system", "content": INSTRUCTION + examples}, {"role": "user", "content": question}]


def parse_answer(content: str | None) -> Answer:
    """Check an answer against the schema.

    Raises:
        MalformedAnswerError: It is none, with a few words on why.
    """
    import jsonschema

    try:
        answer = json.loads(content or "")
        jsonschema.validate(answer, SCHEMA)
        # JSON's escapes can name halves of a character, which neither a file nor the cache takes.
        json.dumps(answer, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedAnswerError("not UTF-8") from error
    # Brackets within brackets without end are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError("no JSON" if content else "empty") from error
    except jsonschema.ValidationError as error:
        raise MalformedAnswerError(f"wrong schema: {shown(error.message)}"[:200]) from error
    motion = " ".join(answer["motion"].split())
    if len(motion) > MAX_MOTION:
        raise MalformedAnswerError(f"a motion of {len(motion)} characters")
    return Answer(motion, tuple(" ".join(name.split()) for name in answer["objects"]))


class _Asker:
    def __init__(self, params: CaptionParams, cache: CaptionCache, progress: Callable[[int], None] | None):
        self._params, self._cache = params, cache
        self._progress = progress or (lambda done: None)
        self._report = AskReport()
        self._failures = 0  # in a row
        self._reserved = 0
        self._dearest = 0  # answer so far
        # Characters / 3 is more than any tokenizer makes of English; answers tell the true figure.
        self._price = sum(len(message["content"]) for message in messages_for("")) // 3 + ANSWER_TOKENS + 100

    async def ask(self, captions: list[str]) -> AskReport:
        from openai import AsyncOpenAI

        params = self._params
        key = os.environ.get(params.key_variable) or "none"  # local servers want no key, the client wants one
        queue = iter(captions)
        async with AsyncOpenAI(
            base_url=params.endpoint, api_key=key, timeout=params.timeout, max_retries=params.retries
        ) as client:
            workers = min(params.concurrency, len(captions))
            await asyncio.gather(*(self._work(client, queue) for _ in range(workers)))
        self._report.not_asked = len(captions) - self._report.asked
        return self._report

    async def _work(self, client: Any, queue: Any) -> None:
        while not self._report.stopped_by:
            if not self._reserve():
                return
            caption = next(queue, None)
            if caption is None:
                self._reserved -= self._price
                return
            self._report.asked += 1
            await self._ask_one(client, caption)
            self._progress(self._report.asked)

    async def _ask_one(self, client: Any, caption: str) -> None:
        """Ask until a well-formed answer comes; a reservation is held for the request under way."""
        from openai import OpenAIError

        params, content, problem = self._params, "", ""
        assert params.model is not None
        for attempt in range(params.attempts):
            if attempt and not self._reserve():
                return self._fail("budget")
            try:
                content = await self._request(client, caption)
                answer = parse_answer(content)
            except MalformedAnswerError as error:
                self._report.malformed += 1
                problem = str(error)
            except OpenAIError as error:
                return self._fail(_reason(error))
            else:
                self._cache.keep(caption, answer, params.model)
                self._report.answered += 1
                self._failures = 0
                return None
        self._cache.set_apart(caption, problem, content, params.model)
        self._report.quarantined += 1
        return None

    async def _request(self, client: Any, caption: str) -> str:
        params, price = self._params, self._price
        spent = 0
        try:
            completion = await client.chat.completions.create(
                model=params.model,
                messages=messages_for(caption),
                max_tokens=ANSWER_TOKENS,
                temperature=0,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "motion", "strict": True, "schema": SCHEMA},
                },
            )
            usage = getattr(completion, "usage", None)
            spent = usage.total_tokens if usage else price
            self._dearest = max(self._dearest, spent)
            self._price = self._dearest + PRICE_MARGIN
            content = completion.choices[0].message.content or ""
            if not isinstance(content, str):
                raise TypeError("the content is no text")
            return content
        # A body that is no JSON, or one of another shape, which the client passes on as it is.
        except (ValueError, RecursionError, AttributeError, IndexError, TypeError) as error:
            spent = spent or price
            raise MalformedAnswerError(f"no completion ({type(error).__name__})") from error
        finally:
            self._reserved -= price
            if spent:
                self._cache.spend(params.model or "", spent)

    def _reserve(self) -> bool:
        """Set aside the tokens of one request; False, and the end of asking, where the budget lacks them."""
        budget = self._params.token_budget
        if budget is not None and self._cache.tokens_spent + self._reserved + self._price > budget:
            self._report.stopped_by = self._report.stopped_by or f"the budget of {budget} tokens"
            return False
        self._reserved += self._price
        return True

    def _fail(self, reason: str) -> None:
        self._report.failed[reason] = self._report.failed.get(reason, 0) + 1
        self._failures += 1
        if self._failures >= self._params.concurrency and not self._report.stopped_by:
            self._report.stopped_by = f"the endpoint ({reason})"


def _reason(error: Exception) -> str:
    status = getattr(error, "status_code", None)
    return f"HTTP {status}" if status else {"APITimeoutError": "timeout"}.get(type(error).__name__, "no connection")
