"""Runs the batch command as users do: a process of its own, files in, files out."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 300


@dataclass(frozen=True)
class BatchRun:
    """A finished command. answers: the output's lines by custom_id."""

    exit_code: int
    stderr: str
    lines: list[dict[str, Any]]

    @property
    def answers(self) -> dict[str | None, dict[str, Any]]:
        """Output lines by custom_id."""
        return {line["custom_id"]: line for line in self.lines}

    def body(self, custom_id: str) -> dict[str, Any]:
        """The response body of one request."""
        body: dict[str, Any] = self.answers[custom_id]["response"]["body"]
        return body

    def tokens(self, custom_id: str, choice: int = 0) -> list[int]:
        """The token ids of one choice, which the request must have asked for."""
        tokens: list[int] = self.body(custom_id)["choices"][choice]["token_ids"]
        return tokens


def completion(custom_id: str, prompt: Any, **body: Any) -> dict[str, Any]:
    """Return an input line for /v1/completions."""
    body = {"model": "any", "prompt": prompt, "return_token_ids": True, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def chat(custom_id: str, content: str, **body: Any) -> dict[str, Any]:
    """Return an input line for /v1/chat/completions."""
    messages = [{"role": "user", "content": content}]
    body = {"model": "any", "messages": messages, "return_token_ids": True, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """Write an input file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read an output file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batch_command(source: Path, output: Path, *options: str) -> list[str]:
    """Return the command line."""
    return [
        *(sys.executable, "-m", "glinthawk", "batch", str(source), "--output", str(output)),
        *options,
    ]


def run_batch(
    folder: Path, lines: Sequence[dict[str, Any]], *options: str, name: str = "out"
) -> BatchRun:
    """Run the command over `lines` in `folder`, and return what came of it."""
    source = write_lines(folder / f"{name}.in.jsonl", lines)
    output = folder / f"{name}.jsonl"
    done = subprocess.run(
        batch_command(source, output, *options),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    return BatchRun(done.returncode, done.stderr, read_lines(output) if output.exists() else [])
