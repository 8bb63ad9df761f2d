"""Pins what the images install: writes locks/NAME.txt from the requirements in pyproject.toml.

    make locks

pip resolves; nothing is installed. Packages that only some platforms need, such as the libraries
of a torch for GPUs, are pinned by the packages that need them and not listed here.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = Path(__file__).resolve().parent / "locks"
EXTRAS: dict[str, tuple[str, ...]] = {"attention": (), "gateway": ("gateway",), "stage": ("stage",)}
"""Optional dependencies of each image of a service, beside those that all services have."""

OPERATOR = "operator"
"""It has its own, and none of the services'."""

BUILD = "build"
BUILD_TOOLS = ("pip", "cmake", "ninja", "wheel")
"""What builds the packages, beside what pyproject.toml names; no image keeps it."""


def read_requirements(project: dict[str, Any], image: str) -> list[str]:
    """Return what pyproject.toml asks for in an image, or for building."""
    if image == BUILD:
        return [*project["build-system"]["requires"], *BUILD_TOOLS]
    optional = project["project"]["optional-dependencies"]
    if image == OPERATOR:
        return list(optional[OPERATOR])
    groups = [optional[extra] for extra in EXTRAS[image]]
    return [*project["project"]["dependencies"], *(one for group in groups for one in group)]


def resolve(requirements: list[str]) -> list[str]:
    """Return `name==version` of all that these need, sorted."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*command, "--quiet", "--report", "-", *requirements],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    packages = [entry["metadata"] for entry in json.loads(done.stdout)["install"]]
    return sorted(f"{_normalise(one['name'])}=={_public(one['version'])}" for one in packages)


def main() -> None:
    """Write all files, or those of the images that are named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for image in sys.argv[1:] or [*EXTRAS, OPERATOR, BUILD]:
        pins = resolve(read_requirements(project, image))
        path = LOCKS / f"{image}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["# Written by `make locks`.", *pins, ""]), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(pins)} packages")


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    """Without what a build adds, such as +cpu: that is for the index to choose."""
    return version.partition("+")[0]


if __name__ == "__main__":
    main()
