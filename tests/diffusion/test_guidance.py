import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.guidance import autoguidance, classifier_free
from uvit_jax.errors import UserError

X = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
T = jnp.full((3,), 0.5)
LABELS, NULL = jnp.arange(3), jnp.full((3,), 9)


def network(x, t, label):
    return jnp.sin(x * (1 + label[:, None, None, None])) + t[:, None, None, None]


def test_classifier_free_is_the_papers_formula_in_one_batch():
    rows = []

    def counted(x, t, label):
        rows.append(x.shape[0])
        return network(x, t, label)

    found = classifier_free(counted, LABELS, NULL, 0.7)(X, T)
    cond, uncond = network(X, T, LABELS), network(X, T, NULL)
    np.testing.assert_allclose(found, cond + 0.7 * (cond - uncond), rtol=1e-5, atol=1e-6)
    assert rows == [6]


def test_contexts_guide_as_labels_do():
    context = jax.random.normal(jax.random.key(1), (3, 5, 2))
    by_context = lambda x, t, c: x * jnp.mean(c, axis=(1, 2))[:, None, None, None]  # noqa: E731
    found = classifier_free(by_context, context, jnp.zeros_like(context), 1.0)(X, T)
    np.testing.assert_allclose(found, 2 * by_context(X, T, context), rtol=1e-5, atol=1e-6)


def test_the_scale_may_be_traced():
    program = jax.jit(lambda scale: classifier_free(network, LABELS, NULL, scale)(X, T))
    np.testing.assert_allclose(program(0.0), network(X, T, LABELS), rtol=1e-6)
    assert not np.allclose(program(1.0), program(0.0))


def conditional_call_rows(jaxpr) -> list[list[int]]:
    """The batch sizes of the sines computed in each branch of each cond."""
    conds = [equation for equation in jaxpr.eqns if equation.primitive.name == "cond"]
    return [
        sorted(
            inner.outvars[0].aval.shape[0]
            for branch in equation.params["branches"]
            for inner in branch.jaxpr.eqns
            if inner.primitive.name == "sin"
        )
        for equation in conds
    ]


def test_outside_the_interval_the_second_half_is_not_computed():
    guided = classifier_free(network, LABELS, NULL, 2.0, interval=(0.2, 0.6))
    assert conditional_call_rows(jax.make_jaxpr(guided)(X, T).jaxpr) == [[3, 6]]
    full = classifier_free(network, LABELS, NULL, 2.0)
    for t, expected in ((0.1, network), (0.9, network)):
        np.testing.assert_allclose(guided(X, T * 0 + t), expected(X, T * 0 + t, LABELS), rtol=1e-6)
    for t in (0.2, 0.5, 0.6):
        np.testing.assert_allclose(guided(X, T * 0 + t), full(X, T * 0 + t), rtol=1e-6)


def test_examples_at_different_times_are_guided_each_by_its_own():
    t = jnp.asarray([0.1, 0.5, 0.9])
    found = classifier_free(network, LABELS, NULL, 2.0, interval=(0.2, 0.6))(X, t)
    full = classifier_free(network, LABELS, NULL, 2.0)(X, t)
    plain = network(X, t, LABELS)
    np.testing.assert_allclose(
        found, jnp.stack([plain[0], full[1], plain[2]]), rtol=1e-5, atol=1e-6
    )


def test_autoguidance_leads_away_from_the_weak_model():
    strong, weak = (lambda x, t: 3 * x), (lambda x, t: x + 1)
    np.testing.assert_allclose(
        autoguidance(strong, weak, 0.5)(X, T), 3 * X + 0.5 * (2 * X - 1), rtol=1e-5, atol=1e-6
    )


def test_rescaling_restores_the_standard_deviation():
    plain = network(X, T, LABELS)
    std = lambda x: np.asarray(x).reshape(3, -1).std(-1)  # noqa: E731
    guided, whole, half = (
        classifier_free(network, LABELS, NULL, 3.0, rescale=r)(X, T) for r in (0.0, 1.0, 0.5)
    )
    assert (std(guided) > 1.5 * std(plain)).all()
    np.testing.assert_allclose(std(whole), std(plain), rtol=1e-5)
    np.testing.assert_allclose(half, 0.5 * (guided + whole), rtol=1e-5, atol=1e-6)


def test_bad_intervals_and_rescales_are_named():
    with pytest.raises(UserError, match=r"interval is \(0.6, 0.2\), expected 0 <= low < high <= 1"):
        classifier_free(network, LABELS, NULL, 1.0, interval=(0.6, 0.2))
    with pytest.raises(UserError, match=r"guidance_rescale is 1.5, expected a number from 0 to 1"):
        classifier_free(network, LABELS, NULL, 1.0, rescale=1.5)
