"""All solvers by the name that `SamplerConfig.solver` gives them."""

from uvit_jax.diffusion.ddim import Ddim, Ddpm
from uvit_jax.diffusion.dpm_solver import DpmSolver
from uvit_jax.diffusion.heun import Heun
from uvit_jax.diffusion.sde import Euler
from uvit_jax.diffusion.solver import Solver

SOLVERS: dict[str, Solver] = {
    "dpmsolver++": DpmSolver("dpmsolver++"),
    "dpmsolver": DpmSolver("dpmsolver"),
    "sde-dpmsolver++": DpmSolver("sde-dpmsolver++"),
    "euler_maruyama": Euler(),
    "euler_ode": Euler(ode=True),
    "ddim": Ddim(),
    "heun": Heun(),
    "ddpm": Ddpm(),
}
THRESHOLDING_SOLVERS = tuple(name for name, solver in SOLVERS.items() if solver.thresholds)
