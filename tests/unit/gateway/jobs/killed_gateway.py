"""A gateway to be killed: `python -m unit.gateway.jobs.killed_gateway FOLDER BATCH_ID`.

It works on what is in its folder and ends when the batch has ended.
"""

import sys
from pathlib import Path

from glinthawk.gateway.jobs.feeder import FeederSettings
from unit.gateway.jobs.factories import Gateway, await_status

if __name__ == "__main__":
    settings = FeederSettings(read_ahead=24)
    with Gateway(Path(sys.argv[1]), step_s=0.005, settings=settings) as gateway:
        print("started", flush=True)
        await_status(gateway.store, sys.argv[2])
