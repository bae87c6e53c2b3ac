"""The maths of diffusion: schedules, losses, guidance, solvers. It knows no network, only functions
of (x, t).
"""
