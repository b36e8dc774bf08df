"""Processes that share work over MPI: every job is done once, and nobody waits for ever."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MPIEXEC = Path(sys.executable).with_name("mpiexec")


LARGE_ON_BOTH_SIDES = """
from tokenizer.team import join
team, told = join(), []
jobs = [(number, b"x" * (number % 3 * 1_000_000)) for number in range(30)]
team.share(jobs, lambda job: (job[0], b"y" * 700_000), told.append, lambda job: not job[1])
if team.is_main:
    assert sorted(number for number, _ in told) == list(range(30))
"""


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3])
def test_large_jobs_and_large_results_pass_each_other(ranks):
    done = subprocess.run(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, "-c", LARGE_ON_BOTH_SIDES], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


WHO_WORKED = """
import sys
from mpi4py import MPI
from tokenizer.team import join
team = join()
done = []
def work(job):
    done.append(job)
    import time; time.sleep(0.02)
    return job
told = []
team.share(range(60), work, told.append, lambda job: sys.argv[1] == "quick")
everything = MPI.COMM_WORLD.gather(done)
if team.is_main:
    assert sorted(told) == sorted(job for part in everything for job in part) == list(range(60)), (told, everything)
    print([len(part) for part in everything])
"""


@pytest.mark.dist
@pytest.mark.parametrize("kind, least_of_rank_0", [("quick", 10), ("slow", 0)])
def test_rank_0_works_where_handing_out_is_quick_and_every_job_is_done_once(kind, least_of_rank_0):
    done = subprocess.run(
        [str(MPIEXEC), "-n", "3", sys.executable, "-c", WHO_WORKED, kind], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert sum(counts) == 60 and min(counts[1:]) >= 10 and counts[0] >= least_of_rank_0 and (kind == "quick" or counts[0] == 0)
