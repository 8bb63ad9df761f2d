"""The stand-in hub against the client that the product fetches models with."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.hub import ModelRepository, build_server
from factories_models import make_tiny_model

NAME = "demo/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model("llama3", tmp_path / "tiny")


@pytest.fixture
def endpoint(folder: Path) -> Iterator[str]:
    server = build_server(ModelRepository(NAME, folder), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(endpoint: str, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Have the product find a model, in a process that knows only this hub."""
    program = (
        "import json, sys\n"
        "from glinthawk.models.source import resolve_model\n"
        "files = resolve_model(sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None)\n"
        "print(json.dumps(str(files.folder)))"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", program, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_product_fetches_a_model_whole(folder: Path, endpoint: str, tmp_path: Path) -> None:
    done = resolve(endpoint, tmp_path / "home", NAME)
    assert done.returncode == 0, done.stderr
    fetched = Path(json.loads(done.stdout.splitlines()[-1]))
    names = {path.name for path in fetched.iterdir()}
    assert {"config.json", "model.safetensors"} <= names
    for name in names:
        assert (fetched / name).read_bytes() == (folder / name).read_bytes(), name


def test_what_is_not_there_is_refused_with_its_name(endpoint: str, tmp_path: Path) -> None:
    for options, named in (([f"{NAME}x"], f"{NAME}x"), ([NAME, "v9"], "v9")):
        done = resolve(endpoint, tmp_path / "home", *options)
        assert done.returncode != 0
        assert named in done.stderr


def test_a_part_of_a_file_can_be_had(folder: Path, endpoint: str) -> None:
    content = (folder / "model.safetensors").read_bytes()
    url = f"{endpoint}/{NAME}/resolve/main/model.safetensors"
    request = urllib.request.Request(url, headers={"Range": "bytes=100-299"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 100-299/{len(content)}"
        assert answer.read() == content[100:300]
