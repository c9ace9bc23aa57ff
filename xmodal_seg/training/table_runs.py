# SPDX-License-Identifier: Apache-2.0
"""Make the runs of a table: what is missing is trained and scored, in one process or in several."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import active_children, get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.console import Console

from xmodal_seg.checkpoint import versions
from xmodal_seg.devices import device_name
from xmodal_seg.training.child_processes import end_with
from xmodal_seg.training.locks import alone
from xmodal_seg.training.recipe import Recipe
from xmodal_seg.training.run import evaluate_run, make_run_pseudo_labels, train
from xmodal_seg.training.run_state import STATE_FILE
from xmodal_seg.training.table import code_hash

# A second stage learns from the pseudo-labels of its first stage, of the same seed. Those with a tuned image backbone
# have one teacher with ours_pl, whose backbone is frozen: they differ in nothing but the student.
FIRST_STAGE = {
    "ours_pl": "ours",
    "ours_lora_pl": "ours",
    "ours_all_modules_pl": "ours",
    "ours_gate_pl": "ours",
    "xmuda_pl": "xmuda",
}
CODE_FILE = "code.txt"  # a line for each version of the code that the run has seen
MACHINE_FILE = "made_with.txt"  # the same for libraries and devices
LOG_FILE = "log.txt"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of the table to be."""

    recipe: Recipe
    key: dict[str, Any]  # the line's key columns
    folder: Path
    first_stage: Path | None = None  # folder of the run whose pseudo-labels are learned

    @property
    def title(self) -> str:
        return f"{self.key['shift']} {self.key['method']} seed {self.key['seed']}"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was made, or the sentence about why not."""

    run: Run
    minutes: float = 0.0
    code: str = ""  # hashes of the code that made it, more than one where it was changed while the run was interrupted
    made_with: str = ""  # libraries and device, likewise
    results: dict[str, Any] | None = None
    error: str | None = None


def make_runs(
    chains: Sequence[Sequence[Run]], *, jobs: int, begins: Callable[[Run], None] = lambda _: None
) -> Iterator[Finished]:
    """Train and score runs, `jobs` at a time, each as soon as the one before it in its chain is done.

    The runs behind one that fails are left out. With one job everything happens in this process; with more, each run
    has a process of its own and a single thread: two such processes do nearly twice the work of one process with two
    threads. Of several GPUs each process sees one. `begins` is told of each run that begins.
    """
    if jobs == 1:
        for chain in chains:
            yield from _until_failure(chain, begins=begins)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes to come
    gpus: SimpleQueue[str] = SimpleQueue()
    for gpu in islice(cycle(_gpus()), jobs):
        gpus.put(gpu)

    def submit(run: Run) -> Future[Finished]:
        begins(run)
        return threads.submit(_in_own_process, run, gpus)

    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield from _in_pool(submit, chains, jobs=jobs)
        except BaseException:  # such as Ctrl-C: do not wait for what is in work
            for process in active_children():
                process.terminate()
            raise


def make_run(run: Run) -> Finished:
    """Train and score one run, its output in `log.txt`; an error becomes a sentence."""
    start_s = time.monotonic()
    try:
        with alone(run.folder):
            code = "+".join(_note(run.folder, CODE_FILE, code_hash()))
            made_with = " + ".join(_note(run.folder, MACHINE_FILE, _libraries_and_device(run.recipe)))
            results = _results(run)
    except Exception as error:  # of whatever kind: the other runs of the table go on
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return Finished(run=run, error=f"{run.title}: {what}")
    minutes = (time.monotonic() - start_s) / 60
    return Finished(run=run, minutes=minutes, code=code, made_with=made_with, results=results)


def _results(run: Run) -> dict[str, Any]:
    with (run.folder / LOG_FILE).open("a", encoding="utf-8", buffering=1) as log:
        console = Console(file=log)
        if run.first_stage is not None:
            assert run.recipe.data.pseudo_labels is not None
            make_run_pseudo_labels(run.first_stage, run.recipe.data.pseudo_labels, console=console)
        train(run.recipe, run.folder, console=console)
        return evaluate_run(run.folder, console=console)


def _note(folder: Path, name: str, present: str) -> list[str]:
    """Add what is present to the lines that a run has seen, and give them all; a run that begins has seen none."""
    path = folder / name
    begun = path.is_file() and (folder / STATE_FILE).is_file()
    lines = list(dict.fromkeys([*(path.read_text(encoding="utf-8").splitlines() if begun else []), present]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def _libraries_and_device(recipe: Recipe) -> str:
    """What the last digits of a result depend on besides recipe, data and code."""
    found = versions()
    packages = [f"{name} {found[name]}" for name in found if name in ("torch", "timm") or name.startswith("spconv")]
    uses_gpu = recipe.accelerator != "cpu" and torch.cuda.is_available()
    return ", ".join([*packages, device_name(torch.device("cuda" if uses_gpu else "cpu"))])


def _in_own_process(run: Run, gpus: SimpleQueue[str], *, make: Callable[[Run], Finished] = make_run) -> Finished:
    """Make a run in a new process, whose memory is then the run's; one that is killed is that run's error alone."""
    gpu = gpus.get()
    arguments = (os.getpid(), gpu)
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_worker, initargs=arguments) as pool:
            return pool.submit(make, run).result()
    except BrokenProcessPool:
        return Finished(run=run, error=f"{run.title}: its process was killed; {run.folder}/{LOG_FILE} is what it said")
    finally:
        gpus.put(gpu)


def _in_pool(
    submit: Callable[[Run], Future[Finished]], chains: Sequence[Sequence[Run]], *, jobs: int
) -> Iterator[Finished]:
    """Chains begin in their order; a run whose first stage is done comes before chains that have not begun."""
    followers = {id(chain[i]): chain[i + 1] for chain in chains for i in range(len(chain) - 1)}
    waiting = deque(chain[0] for chain in chains if chain)
    pending: dict[Future[Finished], Run] = {}
    while pending or waiting:
        while waiting and len(pending) < jobs:
            run = waiting.popleft()
            pending[submit(run)] = run
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            run, finished = pending.pop(future), future.result()
            if finished.error is None and id(run) in followers:
                waiting.appendleft(followers[id(run)])
            yield finished


def _until_failure(chain: Sequence[Run], *, begins: Callable[[Run], None]) -> Iterator[Finished]:
    for run in chain:
        begins(run)
        finished = make_run(run)
        yield finished
        if finished.error is not None:
            return


def _begin_worker(parent: int, gpu: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA begins in this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
    torch.set_num_threads(1)
    end_with(parent)  # or a new call of the program would find the folders held


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be for one GPU, for each of them; "" alone where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",")]
    return [str(index) for index in range(torch.cuda.device_count())] or [""]
