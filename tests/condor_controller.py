"""A program that squares numbers by jobs and goes on where the one before it was killed: condor_controller.py FOLDER NUMBER SECONDS."""

import concurrent.futures
import sys
import time
from pathlib import Path

from support_executors import note

from executors.condor import CondorExecutor
from executors.directories import claim_directory


def work(runs, x, seconds):
    note(runs, x)
    time.sleep(seconds)
    return x * x


if __name__ == "__main__":
    folder, number, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    results = folder / "results"
    results.touch()
    with claim_directory(folder / "work") as work_dir, CondorExecutor(work_dir / "condor", check_interval_s=0.2) as executor:
        known = {int(line.split()[0]) for line in results.read_text().splitlines()}
        futures = {future: args[1] for future, fn, args, kwargs in executor.recover() if fn is work}
        print("recovered", flush=True)
        for x in set(range(number)) - known - set(futures.values()):
            futures[executor.submit(work, str(folder / "runs"), x, seconds)] = x
        for future in concurrent.futures.as_completed(futures):
            if futures[future] not in known:
                note(results, f"{futures[future]} {future.result()}")
                known.add(futures[future])
            executor.forget(future)
    print("done", flush=True)
