"""Work that several processes share, each with its own copy of what does it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tivtok.cli.output import CommandError

Job = TypeVar("Job")
Result = TypeVar("Result")

_work: Callable[[Any], Any]


def each(jobs: Sequence[Job], work: Callable[[Job], Result], workers: int) -> Iterator[Result]:
    """``work`` of each job, in this process, or in any order from ``workers`` others.

    Args:
        work: can be pickled; each process gets it once, and keeps what it loads.

    Raises:
        CommandError: a process ended abruptly.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads can hang
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=spawn, initializer=_start_worker, initargs=(work,)
    ) as pool:
        try:
            for done in as_completed(_submitted(pool, jobs)):
                yield done.result()
        except SystemExit:  # a worker's, whose ctrl-C came back before this process had seen its own
            raise KeyboardInterrupt from None
        except BrokenProcessPool:
            raise CommandError("a worker ended abruptly, out of memory perhaps: go on with fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, jobs: Sequence[Any]) -> list[Future[Any]]:
    """Start the workers with ctrl-C held back: it would interrupt their imports, with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(_work_in_worker, job) for job in jobs]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(work: Callable[[Any], Any]) -> None:
    """Keep one copy per process: its model is loaded once, for all jobs."""
    global _work
    _quiet_ctrl_c()
    _work = work


def _work_in_worker(job: Any) -> Any:
    return _work(job)


def _quiet_ctrl_c() -> None:
    """Workers get ctrl-C, too: they clean up and end without a traceback; the command says what happened."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # held back until here, and nothing to clean up yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
