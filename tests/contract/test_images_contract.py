"""Dockerfiles and what they pin, against pyproject.toml and the command line."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from glinthawk.cli import cli

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "services" / "images"
SERVICES = ("attention", "gateway", "stage")
EXTRAS: dict[str, tuple[str, ...]] = {"attention": (), "gateway": ("gateway",), "stage": ("stage",)}
WITHOUT_TORCH = ("attention", "gateway")


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read_lock(name: str) -> dict[str, str]:
    """Return the version of each package that is pinned."""
    lines = (IMAGES / "locks" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), name
    return {pin[0]: pin[1] for pin in pins}


def read_stages(image: str) -> list[str]:
    """Return a Dockerfile's build stages, the last of which is the result."""
    text = (IMAGES / f"{image}.Dockerfile").read_text(encoding="utf-8")
    return re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("image", SERVICES)
def test_pins_satisfy_what_the_package_asks_for(image: str) -> None:
    project, pins = read_project()["project"], read_lock(image)
    optional = project["optional-dependencies"]
    extras = [one for extra in EXTRAS[image] for one in optional[extra]]
    for text in [*project["dependencies"], *extras]:
        wanted = Requirement(text)
        version = pins.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted.name} is not pinned for {image}: run `make locks`"
        assert wanted.specifier.contains(version), f"{wanted.name} {version}: run `make locks`"


def test_build_tools_are_pinned() -> None:
    pins = read_lock("build")
    for text in read_project()["build-system"]["requires"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])


@pytest.mark.parametrize("image", WITHOUT_TORCH)
def test_images_beside_the_stages_have_no_torch(image: str) -> None:
    assert not {"torch", "triton"} & set(read_lock(image))


def test_workers_have_no_tokenizers() -> None:
    assert not {"transformers", "tokenizers", "fastapi", "sqlalchemy"} & set(read_lock("attention"))


@pytest.mark.parametrize("image", [path.stem for path in sorted(IMAGES.glob("*.Dockerfile"))])
def test_results_have_a_numeric_user_and_no_tools(image: str) -> None:
    result = read_stages(image)[-1]
    assert re.search(r"^USER 65532:65532$", result, re.MULTILINE)
    assert "g++" not in result
    assert "pip" not in result
    assert f'org.opencontainers.image.title="glinthawk-{image}"' in result


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_bases_come_by_argument_and_no_registry_is_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE=\S+$", text, re.MULTILINE)
    sources = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    assert set(sources) <= {"${BASE}", *stages}
    assert not re.search(r"https?://|\w\.(?:io|com|dev)/", text)


@pytest.mark.parametrize("image", SERVICES)
def test_an_image_runs_the_command_of_its_role(image: str) -> None:
    result = read_stages(image)[-1]
    (entry,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', result, re.MULTILINE)
    (role,) = re.findall(r'^CMD \["(\w+)"\]$', result, re.MULTILINE)
    assert entry in read_project()["project"]["scripts"]
    assert role in cli.commands
