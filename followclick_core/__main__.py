"""The command line: python -m followclick_core animate | segment | measure | train | evaluate | ablate |
build-dataset | build-art.

Exit codes: 0 done; 2 bad input, with one sentence on stderr that says what is wrong, what came and what to do; 1 an
error of the program's own, with a traceback; 130 interrupted (Ctrl-C), 143 terminated. However it ends, a file that was
being written appears whole or not at all.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from .cli.parser import build_parser, join_negative_values

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, default sys.argv[1:]."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments = build_parser().parse_args(join_negative_values(sys.argv[1:] if argv is None else argv))
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nfollowclick: interrupted; no half-written file is left.", file=sys.stderr)
        return INTERRUPTED
    # CheckpointError is a ValueError. Anything else is a fault of the program, which its traceback helps to find.
    except (ValueError, FileNotFoundError) as error:
        print(f"followclick: {error}", file=sys.stderr)
        return BAD_INPUT
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        print(f"followclick: {error.filename} cannot be used ({error.strerror}); name another place.", file=sys.stderr)
        return BAD_INPUT
    return 0


def _terminate(signum: int, frame: FrameType | None) -> None:
    # As an exception it lets the writers remove their temporary files; the default action would not.
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
