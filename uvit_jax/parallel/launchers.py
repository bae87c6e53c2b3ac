"""What launchers of several processes leave in the environment: Slurm, Open MPI and TPU pods."""

import dataclasses
import glob
import importlib.util
import re
import zlib
from collections.abc import Mapping

from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place in a run of several; None is what JAX finds out itself, by `method`.

    Attributes:
      coordinator: "host:port" of process 0.
      num_processes: of the run.
      process_id: of this one.
      local_devices: numbers of the devices that it takes, of those that it sees; None for all.
      method: JAX's name for a way to find out what is None; "deactivate" where nothing is.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None
    method: str = "deactivate"


def launched(environ: Mapping[str, str]) -> Place | None:
    """The place of this process among those that a launcher started; None where it is alone. Reads no network."""
    return _slurm(environ) or _open_mpi(environ) or _tpu_pod(environ)


def number_in(environ: Mapping[str, str], name: str) -> int | None:
    """The whole number in a variable; None where it is not set."""
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{name} is {text!r}, expected a whole number")
    return int(text)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """The place among the tasks that srun started; an salloc's shell or an sbatch's script is none of them."""
    tasks, nodes = number_in(environ, "SLURM_STEP_NUM_TASKS"), environ.get("SLURM_STEP_NODELIST")
    rank, job = number_in(environ, "SLURM_PROCID"), number_in(environ, "SLURM_JOB_ID")
    if not tasks or tasks == 1 or not nodes or rank is None or job is None:
        return None
    # "node[001-004,007],other" begins with node001; commas within brackets end nothing.
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]
    # "4(x2),3": tasks on each node; all that matters is whether there are several on one.
    on_node = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))))
    local = number_in(environ, "SLURM_LOCALID") or 0
    devices = None if _slurm_binds_gpus(environ) else _share_of_gpus(environ, local, on_node)
    return Place(f"{first}:{_port(environ, job)}", tasks, rank, devices)


def _slurm_binds_gpus(environ: Mapping[str, str]) -> bool:
    """Whether each of srun's tasks sees no GPUs but its own.

    slurmd says the step's binding in SLURMD_TRES_BIND, from 19.05 on, whether it was asked for (--gpu-bind,
    --tres-bind) or follows from --gpus-per-task (from 21.08 on; before that all tasks see all GPUs) or from
    --ntasks-per-gpu: as "gres/gpu:per_task:2", without "gres/" in older versions. SLURM_GPUS_PER_TASK says less: it
    stands beside --gpu-bind=none too, and is gone from 23.11 on. "closest" tasks may have the same GPUs in sight: those
    are shared as without a binding.
    """
    return re.search(r"\bgpu:(verbose,)?(per_task|single|map|mask)", environ.get("SLURMD_TRES_BIND", "")) is not None


def _open_mpi(environ: Mapping[str, str]) -> Place | None:
    """The place among the processes that mpirun started.

    Before Open MPI 5 it says where it runs itself, which is process 0's host unless it was told otherwise; from then on
    nothing is said of other hosts, and only processes that share one need no coordinator from the config.
    """
    size, rank = number_in(environ, "OMPI_COMM_WORLD_SIZE"), number_in(environ, "OMPI_COMM_WORLD_RANK")
    if not size or size == 1 or rank is None:
        return None
    on_node = number_in(environ, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    local = number_in(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    # "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911" or "...;tcp6://[fe80::1,2620::2]:43370"; jobs count by 4096.
    uri = re.match(r"(\d+)\..*?tcp6?://(\[?[^,\]]+?)(?:,|\]|:\d+$)", environ.get("OMPI_MCA_orte_hnp_uri", ""))
    job = int(uri[1]) >> 12 if uri else zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())
    host = uri[2] + "]" * uri[2].startswith("[") if uri else None
    host = "127.0.0.1" if on_node == size else host
    return Place(host and f"{host}:{_port(environ, job)}", size, rank, _share_of_gpus(environ, local, on_node))


def _tpu_pod(environ: Mapping[str, str]) -> Place | None:
    """Whether JAX may find a TPU slice of several hosts: in GKE's variables, or at Google Cloud's metadata server.

    The server is asked on a host with TPU chips only: anywhere else the wait for it would hold up every start.
    """
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu") or not _has_tpu():
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        several = "," in hosts or (number_in(environ, "MEGASCALE_NUM_SLICES") or 1) > 1
        return Place(method="gketpu") if several else None
    return None if "TPU_SKIP_MDS_QUERY" in environ else Place(method="gcetpu")


def _has_tpu() -> bool:
    devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _share_of_gpus(environ: Mapping[str, str], local: int, on_node: int) -> tuple[int, ...] | None:
    """The GPUs of this process among those it sees; all where it is alone on the host or sees none but its own."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))
    share = gpus // on_node
    if on_node == 1 or not share or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    return tuple(range(local * share, (local + 1) * share))


def _port(environ: Mapping[str, str], job: int) -> int:
    """The coordinator's: JAX_COORDINATOR_PORT, or one of the 4096 highest by the number of the job."""
    return number_in(environ, "JAX_COORDINATOR_PORT") or 61440 + job % 4096
