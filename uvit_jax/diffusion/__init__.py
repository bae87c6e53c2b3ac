"""The maths of diffusion: schedules, losses, guidance, solvers, of functions of (x, t)."""
