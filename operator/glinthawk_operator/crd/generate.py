"""Writes the CustomResourceDefinition as a file: `python -m glinthawk_operator.crd.generate`."""

import sys
from pathlib import Path

import yaml

from glinthawk_operator.crd.schema import build_crd


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice twice: anchors are not for people, nor for every reader."""

    def ignore_aliases(self, data: object) -> bool:
        return True


HEAD = "# Generated from operator/glinthawk_operator/crd by `make crd`; changes go there.\n"
PATH = Path("crds/glinthawkdeployments.yaml")


def render_crd() -> str:
    """Return the file's content."""
    text = yaml.dump(build_crd(), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return HEAD + str(text)


def main(arguments: list[str]) -> None:
    """Write it to the path that is given, else to where it lies in the repository."""
    path = Path(arguments[0]) if arguments else PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_crd(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
