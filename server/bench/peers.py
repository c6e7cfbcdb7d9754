"""Other systems at the same work: so many `/bin/true` by so many workers on this machine, each in a warm state; prints tasks per second.

python peers.py NAME TASKS WORKERS, by a Python that has the packages parsl, celery, redis, distributed and hyperqueue: this file
imports nothing of ours. Celery needs redis-server(1) on PATH as well.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

TRUE = ["/bin/true"]
WARM_UP = 20


def run_true(*_: object) -> int:
    """The task, the same in all of them."""
    return subprocess.call(TRUE)


def _timed(tasks: int, work: Callable[[int], None]) -> float:
    work(WARM_UP)
    began = time.perf_counter()
    work(tasks)
    return tasks / (time.perf_counter() - began)


def spawn(tasks: int, workers: int) -> float:
    """The limit: processes that do nothing but start one after the other and wait for it."""

    def work(n: int) -> None:
        code = f"import subprocess\nfor _ in range({n // workers}): subprocess.call({TRUE!r})"
        started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(workers)]
        if any(process.wait() for process in started):
            raise RuntimeError("it could not be started")

    return _timed(tasks, work)


def parsl(tasks: int, workers: int) -> float:
    import parsl as parsl_package
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="htex", max_workers_per_node=workers, address="127.0.0.1", provider=LocalProvider(max_blocks=1)
    )
    parsl_package.load(Config(executors=[executor], run_dir=os.getcwd()))
    app = parsl_package.python_app(_parsl_task)
    try:
        return _timed(tasks, lambda n: _all([app() for _ in range(n)]))
    finally:
        parsl_package.dfk().cleanup()


def _parsl_task() -> int:
    import subprocess

    return subprocess.call(["/bin/true"])


def _all(futures: list[Future[Any]]) -> None:
    if any(future.result() for future in futures):
        raise RuntimeError("a task failed")


def dask(tasks: int, workers: int) -> float:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return _timed(tasks, lambda n: _all(client.map(_dask_task, [time.time_ns() + i for i in range(n)])))


def _dask_task(_: int) -> int:
    import subprocess

    return subprocess.call(["/bin/true"])


def celery(tasks: int, workers: int) -> float:
    redis = shutil.which("redis-server")
    if redis is None:
        raise RuntimeError("Celery needs redis-server on PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["PEERS_REDIS"] = f"redis://127.0.0.1:{port}/0"
    server = _started(
        [redis, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--dir", os.getcwd()]
    )
    here = Path(__file__).resolve()
    words = ["-m", "celery", "-A", "peers:celery_app", "worker", "-c", str(workers), "--loglevel", "ERROR"]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    worker = _started([sys.executable, *words], env=environment)
    try:
        sys.path.insert(0, str(here.parent))
        task = importlib.import_module(here.stem).celery_app.tasks["peers.true"]
        return _timed(tasks, lambda n: _got([task.delay() for _ in range(n)]))
    finally:
        for process in (worker, server):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _got(results: list[Any]) -> None:
    if any(result.get(timeout=300) for result in results):
        raise RuntimeError("a task failed")


if "PEERS_REDIS" in os.environ:
    from celery import Celery

    celery_app = Celery("peers", broker=os.environ["PEERS_REDIS"], backend=os.environ["PEERS_REDIS"])
    celery_app.conf.update(task_acks_late=True, worker_prefetch_multiplier=10)
    celery_app.task(name="peers.true")(run_true)


def hyperqueue(tasks: int, workers: int) -> float:
    from hyperqueue import Job
    from hyperqueue.cluster import LocalCluster, WorkerConfig

    def work(n: int) -> None:
        job = Job()
        for _ in range(n):
            job.program(TRUE, stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])

    with LocalCluster(os.getcwd(), WorkerConfig(cores=workers)) as cluster:
        client = cluster.client()
        return _timed(tasks, work)


def _started(words: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


NAMES = ("parsl", "celery", "dask", "hyperqueue")
_WAYS = {"spawn and wait": spawn, "parsl": parsl, "celery": celery, "dask": dask, "hyperqueue": hyperqueue}

if __name__ == "__main__":
    os.environ["PATH"] = os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    )
    sys.stdout.write(f"{_WAYS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))}\n")
