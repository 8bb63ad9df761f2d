"""The process that validates a batch's input: `python -m glinthawk.gateway.jobs.validate`.

A process of its own, because reading a million lines of JSON would hold the interpreter's lock
against the engine, and because a line's memory is gone with it. It writes what it finds to
stdout, chunk by chunk, and knows no store: the gateway alone writes there. That keeps the store's
lock with one process, keeps patience with a full disk in one place, and leaves this process small
(no database, no tokenizer, no model). The pipe holds it back when the store is slower.

    stdout:  [[number, offset, num_bytes, custom_id, refusal, param], …]   a chunk, many times
             "end"                                                         the input was read whole

Without that last line the process died, and what came before is to be found again.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from glinthawk.gateway.jobs.scan import chunk, encode_chunk, scan_lines
from glinthawk.gateway.requests import Endpoint
from glinthawk.telemetry.parent import end_with_parent

END_LINE = json.dumps("end").encode() + b"\n"

EXIT_UNREADABLE = 3
"""Exit code when the system does not let the input be read."""

_NICENESS = 10


def main(arguments: Sequence[str]) -> int:
    """Validate one file and return the exit code."""
    parser = argparse.ArgumentParser(prog="glinthawk.gateway.jobs.validate", allow_abbrev=False)
    parser.add_argument("input", type=Path)
    parser.add_argument("--endpoint", type=Endpoint, required=True)
    parser.add_argument("--max-line-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    end_with_parent()
    os.nice(_NICENESS)  # nobody waits for it as for a token
    output = sys.stdout.buffer
    try:
        with options.input.open("rb") as file:
            lines = scan_lines(file, options.endpoint, max_line_bytes=options.max_line_bytes)
            for part in chunk(lines):
                output.write(encode_chunk(part))
                output.flush()
        output.write(END_LINE)
        output.flush()
    except BrokenPipeError:
        # The gateway does not want to hear more; nor must the interpreter's own flush try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    except OSError as error:
        print(f"{options.input} cannot be read: {error.strerror}", file=sys.stderr)
        return EXIT_UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
