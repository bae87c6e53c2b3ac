"""Variables that launchers of several processes set: Open MPI, MPICH, Slurm and TPU pods."""

import dataclasses
import glob
import importlib.util
import re
import zlib
from collections.abc import Mapping

from uvit_jax.errors import UserError

# Variables of the number of processes, and of this one's number.
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_HYDRA = ("PMI_SIZE", "PMI_RANK")


@dataclasses.dataclass(frozen=True)
class Place:
    """Place of a process in a run of several; JAX finds out values that are None, by `method`.

    Attributes:
      coordinator: "host:port" of process 0.
      num_processes: number of processes in the run.
      process_id: number of this process, from 0.
      local_devices: numbers of the visible devices that this process uses; None for all.
      method: JAX's name of a way to detect the values that are None; "deactivate" for no way.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None
    method: str = "deactivate"


def launched(environ: Mapping[str, str]) -> Place | None:
    """Returns this process's place as its launcher set it; None for a run of one. Uses no network.

    Launchers are tried in JAX's order (`jax._src.clusters`): Open MPI, Slurm, TPU pods. Inside a
    Slurm job mpirun starts its daemons with srun, one per node, and its processes inherit the
    daemon's numbers. So where MPI's variables are set, Slurm's are not read, also for a run of one.
    MPICH's mpiexec (Hydra), which JAX does not detect, does the same.
    """
    if _is_set(environ, *_OPEN_MPI):
        return _open_mpi(environ)
    if _is_set(environ, *_HYDRA):
        return _hydra(environ)
    return _slurm(environ) or _tpu_pod(environ)


def number_in(environ: Mapping[str, str], name: str) -> int | None:
    """Returns the whole number in a variable; None where it is not set."""
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{name} is {text!r}, expected a whole number")
    return int(text)


def _is_set(environ: Mapping[str, str], *names: str) -> bool:
    return all(name in environ for name in names)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """Returns the place among srun's tasks; None in an salloc's shell or an sbatch's script."""
    tasks, nodes = number_in(environ, "SLURM_STEP_NUM_TASKS"), environ.get("SLURM_STEP_NODELIST")
    rank, job = number_in(environ, "SLURM_PROCID"), number_in(environ, "SLURM_JOB_ID")
    if not tasks or tasks == 1 or not nodes or rank is None or job is None:
        return None
    # "4(x2),3": tasks on each node. It only matters if any node has several.
    on_node = max(
        map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1")))
    )
    local = number_in(environ, "SLURM_LOCALID") or 0
    devices = None if _slurm_binds_gpus(environ) else _share_of_gpus(environ, local, on_node)
    return Place(f"{_first_node(nodes)}:{_port(environ, job)}", tasks, rank, devices)


def _first_node(nodes: str) -> str:
    """Returns the first node of Slurm's list: "node[001-004,007],other" begins with node001."""
    # Commas within brackets do not end a name.
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _slurm_binds_gpus(environ: Mapping[str, str]) -> bool:
    """True if each of srun's tasks sees no GPUs but its own.

    slurmd sets the step's binding in SLURMD_TRES_BIND, from 19.05 on, as "gres/gpu:per_task:2"
    (without "gres/" in older versions). It is set for --gpu-bind, --tres-bind, --ntasks-per-gpu and
    --gpus-per-task (from 21.08 on; before that all tasks see all GPUs). SLURM_GPUS_PER_TASK does
    not tell: it is also set with --gpu-bind=none, and no more from 23.11 on. Tasks bound "closest"
    may see the same GPUs, so those are shared as without a binding.
    """
    return (
        re.search(
            r"\bgpu:(verbose,)?(per_task|single|map|mask)", environ.get("SLURMD_TRES_BIND", "")
        )
        is not None
    )


def _open_mpi(environ: Mapping[str, str]) -> Place | None:
    """Returns the place among the processes that mpirun started; None for a run of one.

    Before Open MPI 5 a variable has mpirun's own host, which by default is process 0's host. Later
    versions name no other host: see `_coordinator`.
    """
    size, rank = (number_in(environ, name) for name in _OPEN_MPI)
    if not size or size == 1:
        return None
    on_node = number_in(environ, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    local = number_in(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    # "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911" or "...;tcp6://[fe80::1,2620::2]:43370"; job
    # numbers are multiples of 4096.
    uri = re.match(
        r"(\d+)\..*?tcp6?://(\[?[^,\]]+?)(?:,|\]|:\d+$)", environ.get("OMPI_MCA_orte_hnp_uri", "")
    )
    job = int(uri[1]) >> 12 if uri else zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())
    host = uri[2] + "]" * uri[2].startswith("[") if uri else None
    coordinator = _coordinator(environ, host, job, alone=on_node == size)
    return Place(coordinator, size, rank, _share_of_gpus(environ, local, on_node))


def _hydra(environ: Mapping[str, str]) -> Place | None:
    """Returns the place under the mpiexec of MPICH, Intel MPI or Cray, or srun --mpi=pmi2."""
    size, rank = (number_in(environ, name) for name in _HYDRA)
    slurm = _slurm(environ)
    if slurm is not None and (slurm.num_processes, slurm.process_id) == (size, rank):
        return slurm  # srun --mpi=pmi2 sets its own numbers as PMI's
    if not size or size == 1:
        return None
    on_node = _first_number(environ, "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    local = _first_number(environ, "MPI_LOCALRANKID", "PMI_LOCAL_RANK") or 0
    coordinator = _coordinator(
        environ, None, number_in(environ, "SLURM_JOB_ID") or 0, alone=on_node == size
    )
    return Place(coordinator, size, rank, _share_of_gpus(environ, local, on_node or 1))


def _coordinator(
    environ: Mapping[str, str], host: str | None, job: int, *, alone: bool
) -> str | None:
    """Returns the address of MPI's process 0; None, for the config to name, if it is not known.

    It is this host if all processes are on it (`alone`), else `host`, else the first node of the
    Slurm job, where mpirun and mpiexec start process 0 by default.
    """
    nodes = environ.get("SLURM_JOB_NODELIST")
    host = "127.0.0.1" if alone else host or (_first_node(nodes) if nodes else None)
    return host and f"{host}:{_port(environ, job)}"


def _first_number(environ: Mapping[str, str], *names: str) -> int | None:
    return next((number_in(environ, name) for name in names if name in environ), None)


def _tpu_pod(environ: Mapping[str, str]) -> Place | None:
    """Returns how JAX finds a TPU slice of several hosts: GKE's variables or the metadata server.

    Google Cloud's metadata server is only asked on a host with TPU chips: elsewhere the wait for it
    would delay every start.
    """
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu") or not _has_tpu():
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        several = "," in hosts or (number_in(environ, "MEGASCALE_NUM_SLICES") or 1) > 1
        return Place(method="gketpu") if several else None
    return None if "TPU_SKIP_MDS_QUERY" in environ else Place(method="gcetpu")


def tpu_chips() -> list[str]:
    """Returns the device files of this host's TPU chips."""
    return glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")


def _has_tpu() -> bool:
    return bool(tpu_chips()) and importlib.util.find_spec("libtpu") is not None


def _share_of_gpus(environ: Mapping[str, str], local: int, on_node: int) -> tuple[int, ...] | None:
    """Returns the numbers of this process's GPUs among the visible ones; None for all of them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))
    share = gpus // on_node
    if on_node == 1 or not share or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    return tuple(range(local * share, (local + 1) * share))


def _port(environ: Mapping[str, str], job: int) -> int:
    """Returns JAX_COORDINATOR_PORT, or one of the 4096 highest ports by the job's number."""
    return number_in(environ, "JAX_COORDINATOR_PORT") or 61440 + job % 4096
