"""An OpenAI-compatible chat server on loopback that does what each caption tells it to: answer, or misbehave."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = 1000  # what every completion claims to have cost


class FakeEndpoint:
    """Captions choose the behaviour by their first word; everything asked is in `requests`.

    `429`, `500`: that status on the first two requests for the caption, then an answer. `slow`: an answer after
    `delay` seconds. `garbage`: a body that is no JSON. `prose`: a completion whose content is no JSON. `schema`: JSON
    of another shape. `half`: half of a character, as a JSON escape. `halves`: the same, outside of any JSON. `deep`:
    brackets within brackets. `deeper`: a body of such. `parts`: a list where the content should be. `once`: prose
    first, then an answer. `forbidden`: 401 always. Anything else is answered.
    """

    def __init__(self, delay: float = 0.0):
        self.requests: list[dict] = []
        self.counts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.delay = delay
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):  # the library's name
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content, headers = endpoint.respond(body, self.headers)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def respond(self, body: dict, headers) -> tuple[int, bytes, dict[str, str]]:
        caption = json.loads(body["messages"][-1]["content"])["caption"]
        with self._lock:
            self.requests.append({"caption": caption, "body": body, "key": headers.get("Authorization")})
            self.counts[caption] += 1
            count = self.counts[caption]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self._behave(caption, count)
        finally:
            with self._lock:
                self.at_once -= 1

    def _behave(self, caption: str, count: int) -> tuple[int, bytes, dict[str, str]]:
        order = caption.split()[0]
        if self.delay or order == "slow":
            time.sleep(self.delay or 3)
        if order == "forbidden":
            return 401, b'{"error": {"message": "no key"}}', {}
        if order in ("429", "500") and count <= 2:
            return int(order), b'{"error": {"message": "later"}}', {"retry-after-ms": "20"}
        if order == "garbage":
            return 200, b"{this is no JSON", {}
        if order == "prose" or (order == "once" and count == 1):
            return 200, completion("The motion is: walking."), {}
        if order == "half":
            return 200, completion('{"objects": [], "motion": "wave \\ud83d"}'), {}
        if order == "halves":
            return 200, completion("The motion is \ud83d."), {}
        if order == "deep":
            return 200, completion("[" * 200_000), {}
        if order == "deeper":
            return 200, b"[" * 200_000, {}
        if order == "parts":
            return 200, completion([{"type": "text", "text": "walk"}]), {}
        if order == "schema":
            return 200, completion(json.dumps({"motion": ["walk"], "mood": "happy"})), {}
        return 200, completion(json.dumps({"objects": ["thing"], "motion": f"move {caption.split()[-1]}"})), {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(content: str | list) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": TOKENS - 20, "completion_tokens": 20, "total_tokens": TOKENS}
    answer = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [choice],
        "usage": usage,
    }
    return json.dumps(answer).encode()
