"""Where pieces of work are carried out: joblib's backends, here or on a cluster."""

from __future__ import annotations

import contextlib
import importlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

from layerbounds.arguments import shown, thread_count
from layerbounds.exceptions import InputError, MissingExtraError, first_line
from layerbounds.network.choices import Choice
from layerbounds.network.handles import Held, OfFile, Parcel, layer_bytes
from layerbounds.network.shelf import clear_process
from layerbounds.network.sources import Source
from layerbounds.suggestions import did_you_mean

THREADS, PROCESSES, DASK, RAY = "threads", "processes", "dask", "ray"
#: How joblib calls the backends of clusters.
CLUSTER, POOL = "layerbounds-dask", "layerbounds-ray"
#: Seconds that a scheduler has to answer, and a cluster to have a first worker.
ANSWER, FIRST_WORKER = 5.0, 20.0
#: Bytes of layers that are on a cluster at a time; the last one is, whatever its size.
SENT_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """What ``parallel`` says.

    Attributes
    ----------
    kind : {"threads", "processes", "dask", "ray"}
    address : str or None
        Of a scheduler.
    """

    kind: str
    address: str | None = None


def parse_place(text: Any) -> Place:
    """Read ``threads``, ``processes``, ``dask://HOST:PORT``, ``ray`` or ``ray://HOST:PORT``.

    Raises
    ------
    InputError
        If it is something else.
    MissingExtraError
        If what it needs is not installed.
    """
    kind, mark, address = text.strip().partition("://") if isinstance(text, str) else ("", "", "")
    port = address.rpartition(":")[2]
    well = bool(address.rpartition(":")[0]) and port.isdigit() and 0 < int(port) < 65536
    if kind not in (THREADS, PROCESSES, DASK, RAY) or (mark and kind in (THREADS, PROCESSES)):
        hint = did_you_mean(kind, (THREADS, PROCESSES, DASK, RAY))
        raise InputError(
            f"parallel is {shown(text)}; {hint}choose 'threads', 'processes', 'dask://HOST:PORT' (of a scheduler) or "
            "'ray'."
        )
    if (kind == DASK or mark) and not well:
        raise InputError(f"parallel is {shown(text)}; say where the scheduler is, such as '{kind}://10.0.0.5:8786'.")
    if kind in (DASK, RAY):
        for module in ("distributed",) if kind == DASK else ("ray", "ray.util.joblib.ray_backend"):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MissingExtraError(
                    f"parallel {kind!r} needs {module.partition('.')[0]}, which cannot be imported "
                    f"({first_line(error)}); install it with `pip install 'layerbounds[{kind}]'`."
                ) from error
    return Place(kind, address or None)


@dataclass
class Engine:
    """Workers that are ready.

    Attributes
    ----------
    place : Place
    workers : int
        Pieces at a time.
    options : dict
        Of `joblib.parallel_config`.
    send : callable or None
        Puts a parcel where all workers can get it; the result goes to `joblib.delayed`, and as long as it lives the
        parcel stays.
    alive : callable
        Raises InputError if no workers can be had any more.
    """

    place: Place
    workers: int
    options: dict[str, Any]
    send: Callable[[Parcel], Any] | None = None
    alive: Callable[[], None] = lambda: None
    _sent: dict[int, tuple[Any, int]] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Whether workers are threads of this process."""
        return self.place.kind == THREADS or (self.place.kind == PROCESSES and self.workers == 1)

    def handle(self, source: Source, number: int, digest: str, choices: list[Choice]) -> Any:
        """How workers get a layer: a `Handle`, or what becomes one on the way.

        Parameters
        ----------
        source : Source
        number : int
            Of the layer.
        digest : str
        choices : list of Choice
            Those that the layer can have.
        """
        if self.together:
            return Held(source.layer(number), digest)
        if self.send is None:
            if source.kind != "file" and any(report.projected for report in source.layer(number).gram_reports):
                # Read from the run's file, its Gram matrix would be repaired once more, which may change it.
                return Parcel(source.layer(number), digest, choices)
            return OfFile(str(source.path), source.names[number], digest)
        if number in self._sent:
            sent = self._sent.pop(number)
        else:
            parcel = Parcel(source.layer(number), digest, choices)
            sent = self.send(parcel), layer_bytes(source.layer(number))
        # At the end: those at the beginning were not asked for the longest.
        self._sent[number] = sent
        while len(self._sent) > 1 and sum(size for _, size in self._sent.values()) > SENT_BYTES:
            # Pieces that are under way with it hold it themselves.
            del self._sent[next(iter(self._sent))]
        return sent[0]

    def forget(self) -> None:
        """Send everything again where it is needed: workers that had it may be gone."""
        self._sent.clear()


@contextlib.contextmanager
def opened_engine(place: Place, jobs: int | None) -> Iterator[Engine]:
    """Workers, as long as the block runs.

    Parameters
    ----------
    place : Place
    jobs : int or None
        How many at most; default: all cores of this machine, or of the cluster.

    Raises
    ------
    InputError
        If a scheduler does not answer, or has no workers.
    """
    workers = thread_count(jobs)
    # Everywhere one thread of the BLAS: their number changes last digits, and with them what a layer is.
    with threadpool_limits(limits=1):
        if place.kind in (THREADS, PROCESSES):
            engine = Engine(place, workers, {"backend": "threading" if place.kind == THREADS else "loky"})
            try:
                yield engine
            finally:
                if engine.together:
                    clear_process()
                else:
                    # They would wait for more work, with all that they keep.
                    get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
        elif place.kind == DASK:
            with _dask(place, jobs) as engine:
                yield engine
        else:
            with _ray(place, jobs) as engine:
                yield engine


@contextlib.contextmanager
def _dask(place: Place, jobs: int | None) -> Iterator[Engine]:
    import dask
    import distributed
    from joblib._dask import DaskDistributedBackend

    class Cluster(DaskDistributedBackend):  # type: ignore[misc]
        """joblib works on the spot where it sees a single worker; this one has the layers there."""

        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(int(super().effective_n_jobs(n_jobs)), 2)

    try:
        client = distributed.Client(f"tcp://{place.address}", timeout=ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {place.address} ({first_line(error)}); start one with `dask scheduler`, and "
            "pass its address."
        ) from error
    try:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER)
        except TimeoutError as error:
            raise InputError(
                f"the Dask scheduler at {place.address} has no workers; start some with "
                f"`dask worker {place.address} --nthreads 1`."
            ) from error

        def alive() -> None:
            try:
                client.wait_for_workers(1, timeout=FIRST_WORKER)
            except Exception as error:
                raise InputError(
                    f"the Dask cluster at {place.address} has been lost; what was finished is kept: start the cluster "
                    "again, and repeat the command to go on."
                ) from error

        cores = sum(client.ncores().values())
        workers = cores if jobs is None else min(jobs, cores)
        joblib.register_parallel_backend(CLUSTER, Cluster)
        options = {"backend": CLUSTER, "client": client, "wait_for_workers_timeout": FIRST_WORKER}

        def send(parcel: Parcel) -> Any:
            # A task and no scattered data: if the worker that has it dies, the scheduler repeats the task by itself.
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2 * SENT_BYTES}):
                return client.submit(pickle.loads, pickle.dumps(parcel, protocol=5), pure=False)

        yield Engine(place, workers, options, send, alive)
    finally:
        with contextlib.suppress(Exception):
            # Nobody waits for them: a worker that is dying would never answer.
            for address in client.ncores():
                distributed.fire_and_forget(client.submit(clear_process, workers=[address], pure=False))
        with contextlib.suppress(Exception):
            client.close(timeout=1)


class _Stored:
    """A parcel in Ray's object store."""

    def __init__(self, reference: Any, digest: str) -> None:
        self._reference, self.digest = reference, digest

    def read(self) -> Any:
        """The layer and its problems, from the store."""
        import ray

        return ray.get(self._reference).read()


@contextlib.contextmanager
def _ray(place: Place, jobs: int | None) -> Iterator[Engine]:
    import ray
    from ray.util.joblib.ray_backend import RayBackend

    class Pool(RayBackend):  # type: ignore[misc]
        """Results come as they are there; what Ray's own backend says of itself is that of another pool's."""

        supports_return_generator = True

    begun = not ray.is_initialized()
    if begun:
        address = None if place.address is None else f"ray://{place.address}"
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        except Exception as error:
            where = "here" if place.address is None else f"at {place.address}"
            raise InputError(f"Ray cannot be started {where} ({first_line(error)}); see `ray start --help`.") from error
    try:
        joblib.register_parallel_backend(POOL, Pool)
        cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        workers = cores if jobs is None else min(jobs, cores)

        def send(parcel: Parcel) -> _Stored:
            return _Stored(ray.put(parcel), parcel.digest)

        yield Engine(place, workers, {"backend": POOL}, send)
    finally:
        if begun:
            ray.shutdown()
