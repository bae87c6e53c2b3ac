"""Several hosts as one run: how they find each other, what they must agree on, and when all of them stop."""

import dataclasses

from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How this process finds the others of the run; left as it is, the environment says so.

    Attributes:
      start: "auto" joins the others where a TPU pod, Slurm, Open MPI or JAX_COORDINATOR_ADDRESS say that there are
        any; "off" never does.
      coordinator: "host:port" of process 0, where the environment doesn't say; the same on every process.
      num_processes: of the whole run; 0 for what the environment says.
      process_id: of this process, from 0; -1 for what the environment says.
      timeout: seconds to wait for the others.
    """

    start: str = "auto"
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    timeout: int = 300

    def __post_init__(self):
        if self.start not in ("auto", "off"):
            raise UserError(f"start is {self.start!r}, expected 'auto' or 'off'")
        if self.timeout < 1:
            raise UserError(f"timeout is {self.timeout}, expected at least 1 second")
