"""Writes the JSON of all dashboards to the chart: `make chart`."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.operations import OPERATOR
from dashboards.parts import Board, build_board
from dashboards.throughput import THROUGHPUT
from dashboards.tiers import TIERS

BOARDS: dict[str, Board] = {"throughput": THROUGHPUT, "tiers": TIERS, "operator": OPERATOR}
"""By the name of their file."""

FOLDER = Path(__file__).resolve().parents[1] / "glinthawk" / "dashboards"


def render(board: Board) -> str:
    """Return a dashboard's JSON as the chart holds it."""
    return json.dumps(build_board(board), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write every file, and remove those of dashboards that are no more."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.stem not in BOARDS:
            path.unlink()
    for name, board in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(render(board), encoding="utf-8")
    print(f"{len(BOARDS)} dashboards in {FOLDER}", file=sys.stderr)


if __name__ == "__main__":
    main()
