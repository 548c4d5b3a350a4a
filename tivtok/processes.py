"""Work that several processes of this machine share, each with its own copy of what does it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")

_work: Callable[[Any], Any]
_working = False
_interrupted = False


class WorkerError(ValueError):
    """A worker that was lost, or workers that cannot be had; the message says why."""


def each(jobs: Sequence[Job], works: Sequence[Callable[[Job], Result]]) -> Iterator[Result]:
    """What becomes of each job: in order in this process, or as they are done from as many others as there are works.

    Args:
        works: what does the jobs; one of several goes to each process, pickled, which keeps what it loads.

    Raises:
        WorkerError: a process ended abruptly.
    """
    workers = min(len(works), len(jobs))
    if workers < 2:
        yield from map(works[0], jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads can hang
    seats = spawn.SimpleQueue()
    for work in works[:workers]:
        seats.put(work)
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(seats, threads)) as pool:
        try:
            for done in as_completed(_submitted(pool, jobs)):
                yield done.result()
        except SystemExit:  # a worker's, whose ctrl-C came back before this process had seen its own
            raise KeyboardInterrupt from None
        except BrokenProcessPool:
            raise WorkerError("a worker ended abruptly, out of memory perhaps: go on with fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, jobs: Sequence[Any]) -> list[Future[Any]]:
    """Start the workers with ctrl-C held back: it would interrupt their imports, with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(_do, job) for job in jobs]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(seats: SimpleQueue[Callable[[Any], Any]], threads: int) -> None:
    """Take one of the works. What it needs is imported here, so only then may ctrl-C come."""
    global _work
    Thread(target=_end_with_parent, daemon=True).start()
    _work = seats.get()
    torch.set_num_threads(threads)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in jobs that a shell puts behind
        signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _do(job: Any) -> Any:
    global _working
    try:
        _working = True
        if _interrupted:
            sys.exit(130)
        return _work(job)
    finally:
        _working = False


def _interrupt(*_: object) -> None:
    """Ctrl-C, which workers get, too: they end their job without a traceback; the command says what happened.

    Between jobs it has to wait for the next one: an exception there can leave a queue's lock taken, for ever.
    """
    global _interrupted
    _interrupted = True
    if _working:
        sys.exit(130)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
