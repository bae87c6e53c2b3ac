"""Time at half speed just before t = 1, for schedules whose alpha would vanish there."""

from uvit_jax.diffusion.elementwise import Times, namespace


def slowed(to_go: Times, slow: float) -> Times:
    """1 - t, at half speed once below `slow`.

    It is positive at t = 1 and strictly falls, so lambda keeps its inverse.
    """
    # Not 0.5 * (to_go + slow): XLA would fold that into (1 + slow) - t and round 1 + slow.
    return namespace(to_go).maximum(to_go, 0.5 * to_go + 0.5 * slow)


def speed(to_go: Times, slow: float) -> Times:
    """Derivative of `slowed` with respect to to_go: 1, or 1/2 below `slow`."""
    return namespace(to_go).where(to_go < slow, 0.5, 1.0)


def unslowed(to_go: Times, slow: float) -> Times:
    """The inverse of `slowed`: 1 - t, kept within 0 and 1."""
    xp = namespace(to_go)
    return xp.clip(xp.minimum(to_go, 2.0 * to_go - slow), 0.0, 1.0)
