"""Runs SFT and RL on a small file system that is filled in the middle of each (in a mount name space of its own).

python -m tests.pipeline.full_disk FOLDER BASE     prints what the runs said, then the fingerprints
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.pipeline.test_faults import Driver

folder, base = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder], check=True)
driver = Driver(folder, base, dict(os.environ))
for kind in ("sft", "rl"):
    driver.in_the_middle_of(kind)
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(2**16))
        except OSError:
            pass
    assert driver.wait() == 2, driver.said()[-3000:]
    filler.unlink()
    driver.start()
assert driver.wait() == 0, driver.said()[-3000:]
print(driver.said())
print(*driver.fingerprints().values())
