"""Lays out what the image of the stand-in hub holds: hub.py, and the demo's model beside it.

python tests/cluster/export_model.py FOLDER
"""

import shutil
import sys
from pathlib import Path

from glinthawk.bench.hf_export import export_hf_folder
from glinthawk.core.dtype import DType
from glinthawk.models.source import resolve_model


def main() -> None:
    """Write the folder named on the command line, unless the model is there already."""
    folder = Path(sys.argv[1])
    model = folder / "model"
    if not model.is_dir():
        unfinished = folder / "model.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        export_hf_folder(resolve_model(), DType.BFLOAT16, unfinished)
        unfinished.rename(model)
    shutil.copy(Path(__file__).with_name("hub.py"), folder / "hub.py")


if __name__ == "__main__":
    main()
