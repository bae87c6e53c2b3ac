"""Derivatives whose coefficients are recomputed in the backward pass, where JAX would keep them.

Left alone, JAX keeps GELU'(z) in float32 for a product's u in bfloat16: twice the bytes, of the
largest arrays there are. A `jax.custom_vjp` keeps u, but has no forward mode; `jax.checkpoint`
inside of another one keeps u twice.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

# Rules of a primitive of our own are set in jax.interpreters, which jax keeps public for that but
# may change; a `jax.checkpoint` that kept only the primal arrays would replace all of this.
_RECOMPUTED = Primitive("recomputed")
_RECOMPUTED.multiple_results = True


def recomputed(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays (or None), as one primitive that JAX never takes apart.

    For the tangents of a `jax.custom_jvp` rule: fun of primal arrays and of tangents, in which it
    is linear. Its transpose keeps the primal arrays that it is given, and nothing that it makes of
    them. It has derivatives of every order, forward and backward.
    """

    @functools.wraps(fun)
    def call(*args: Any) -> Any:
        return _bind(fun, *args)

    return call


def _bind(fun: Callable[..., Any], *args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    flat = lambda *leaves: fun(*jax.tree.unflatten(tree, leaves))  # noqa: E731
    jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)  # type: ignore[call-overload]
    return jax.tree.unflatten(jax.tree.structure(shapes), _RECOMPUTED.bind(*leaves, jaxpr=jaxpr))


def _evaluate(*args: Any, jaxpr: ClosedJaxpr) -> list[Any]:
    return jaxpr_as_fun(jaxpr)(*args)


def _joined(chosen: Sequence[bool], some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """All arguments in order, of those that are chosen and of the others."""
    some_left, others_left = iter(some), iter(others)
    return [next(some_left) if one else next(others_left) for one in chosen]


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: ClosedJaxpr
) -> tuple[list[Any], list[Any]]:
    moves = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def tangent_of(primals: list[Any], moved: list[Any]) -> list[Any]:
        fixed = [primal for primal, moving in zip(primals, moves, strict=True) if not moving]
        moving = [primal for primal, moving in zip(primals, moves, strict=True) if moving]
        return jax.jvp(lambda *a: _evaluate(*_joined(moves, a, fixed), jaxpr=jaxpr), moving, moved)[
            1
        ]

    moved = [tangent for tangent, moving in zip(tangents, moves, strict=True) if moving]
    return _RECOMPUTED.bind(*primals, jaxpr=jaxpr), _bind(tangent_of, list(primals), moved)


def _transpose(cotangents: Sequence[Any], *args: Any, jaxpr: ClosedJaxpr) -> list[Any]:
    linear = [ad.is_undefined_primal(arg) for arg in args]
    shapes = [arg.aval for arg, chosen in zip(args, linear, strict=True) if chosen]

    def transposed(kept: list[Any], cotangents: list[Any]) -> list[Any]:
        of_linear = lambda *a: _evaluate(*_joined(linear, a, kept), jaxpr=jaxpr)  # noqa: E731
        return list(jax.linear_transpose(of_linear, *shapes)(cotangents))

    whole = [ad.instantiate_zeros(c) for c in cotangents]
    kept = [arg for arg, chosen in zip(args, linear, strict=True) if not chosen]
    return _joined(linear, _bind(transposed, kept, whole), [None] * len(kept))


def _batch(
    args: Sequence[Any], axes: Sequence[Any], *, jaxpr: ClosedJaxpr
) -> tuple[list[Any], list[int]]:
    out = _bind(jax.vmap(functools.partial(_evaluate, jaxpr=jaxpr), in_axes=tuple(axes)), *args)
    return out, [0] * len(out)


_RECOMPUTED.def_impl(_evaluate)
_RECOMPUTED.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
mlir.register_lowering(_RECOMPUTED, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_RECOMPUTED] = _jvp
ad.primitive_transposes[_RECOMPUTED] = _transpose
batching.primitive_batchers[_RECOMPUTED] = _batch
