"""The host's work on a frame stays on the thread that asked for it, whatever the environment says of BLAS libraries.

Threads that are waited for cost a frame a hundred times its time beside a process that has the cores. Counted is processor time per thread, by the
kernel: none of it depends on how fast the machine is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path("/proc/self/task")
MOST_ELSEWHERE = 0.2
"""Share of processor time on other threads, in the quietest of five turns: those of BLAS spin for a while after the library is loaded."""
PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.verdict.frame_checks import frame_statistics

def spent_ns():
    own = str(os.getpid())
    times = {task.name: int((task / "schedstat").read_text().split()[0]) for task in Path("/proc/self/task").iterdir()}
    return times[own], sum(time for name, time in times.items() if name != own)

frame = np.zeros((2048, 2592, 3), np.uint8)
works = {
    "prepare": lambda: frame_statistics(prepare(frame, "bgr", InputSpec(size_hw=(256, 256)))),
    "upsample": lambda: upsample_map(np.zeros((256, 256), np.float32), (2048, 2592)),
    "product": lambda: np.ones((512, 512), np.float32) @ np.ones((512, 512), np.float32),
}
work = works[sys.argv[1]]
work()
shares = []
for _ in range(5):
    before = spent_ns()
    for _ in range(6):
        work()
    own, others = (after - start for after, start in zip(spent_ns(), before))
    shares.append(others / own)
print(min(shares))
"""


def share_elsewhere(work: str) -> float:
    environment = {**os.environ, **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, work], capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not (TASKS / str(os.getpid()) / "schedstat").exists(), reason="needs Linux, which counts processor time per thread")
@pytest.mark.parametrize("work", ["prepare", "upsample"])
def test_no_other_thread_works_on_a_frame(work: str) -> None:
    assert share_elsewhere(work) < MOST_ELSEWHERE


@pytest.mark.skipif(not (TASKS / str(os.getpid()) / "schedstat").exists(), reason="needs Linux, which counts processor time per thread")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="needs two cores")
def test_the_count_would_see_the_threads_of_a_matrix_product() -> None:
    assert share_elsewhere("product") > MOST_ELSEWHERE
