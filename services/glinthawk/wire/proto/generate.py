"""Generate the Python code of the .proto files beside this file.

Run as ``python -m glinthawk.wire.proto.generate``; the results are committed, and a test
proves that they are what this command writes. Needs grpcio-tools, which no service does.
"""

import argparse
import importlib.resources
from pathlib import Path

PACKAGE = "glinthawk/wire/proto"
HERE = Path(__file__).parent


def generate(output: Path) -> list[Path]:
    """Write the generated files below `output`/glinthawk/wire/proto and return them.

    Raises:
        RuntimeError: the compiler refused a file; it has said why on stderr.
    """
    from grpc_tools import protoc  # the only user of a build-time package

    root = HERE.parents[2]
    sources = sorted(f"{PACKAGE}/{path.name}" for path in HERE.glob("*.proto"))
    bundled = str(importlib.resources.files("grpc_tools") / "_proto")
    status = protoc.main(
        ["protoc", f"-I{root}", f"-I{bundled}"]
        + [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
        + sources
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    return sorted((output / PACKAGE).glob("*_pb2*"))


def main() -> None:
    """Generate into the source tree, or below the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parents[2])
    for path in generate(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    main()
