"""A gateway to be killed: `python -m unit.gateway.jobs.killed_gateway FOLDER BATCH_ID`.

It works on what is in its folder, says how far it is (status, lines answered), and ends when the
batch has ended.
"""

import sys
import time
from pathlib import Path

from glinthawk.telemetry.logging import configure_logging
from unit.gateway.jobs.factories import Gateway, make_settings

if __name__ == "__main__":
    configure_logging("error", "console", role="gateway", name="killed")  # not to stdout
    with Gateway(Path(sys.argv[1]), step_s=0.005, settings=make_settings(read_ahead=12)) as gateway:
        is_final, said = False, ""
        while not is_final:
            batch = gateway.store.get_batch(sys.argv[2])
            is_final = batch.status.is_final
            told = f"{batch.status} {batch.counts.completed}"
            if told != said:
                print(told, flush=True)
                said = told
            time.sleep(0.005)
