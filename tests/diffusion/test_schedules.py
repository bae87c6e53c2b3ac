import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.schedules import RectifiedFlow, VPCosine, VPDiscrete, VPLinear
from uvit_jax.errors import UserError

SCHEDULES = [VPLinear(), VPCosine(), VPDiscrete.stable_diffusion(), RectifiedFlow()]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__
)
QUANTITIES = ("log_alpha", "alpha", "sigma", "lambda_", "snr", "drift", "squared_diffusion")


def whole_range() -> np.ndarray:
    """float32 times, dense near both ends of (0, 1]."""
    ends = np.concatenate([np.logspace(-7, 0, 500), 1 - np.logspace(-7, -0.1, 500)])
    times = np.unique(ends.astype(np.float32))
    return times[(times > 0) & (times <= 1)]


def single_precision(schedule, t: np.ndarray) -> dict[str, np.ndarray]:
    found = jax.jit(lambda t: {name: getattr(schedule, name)(t) for name in QUANTITIES})(t)
    assert all(value.dtype == np.float32 for value in found.values())
    return jax.tree.map(np.asarray, found)


def close(found, expected, double: bool) -> None:
    # In single precision the hold is relative; where lambda crosses 0 nothing relative can be
    # asked.
    tolerance = {"rtol": 0, "atol": 1e-9} if double else {"rtol": 1e-4, "atol": 2e-6}
    np.testing.assert_allclose(found, expected, **tolerance)


@pytest.mark.parametrize("double", [True, False])
def test_schedules_agree_with_the_reference_code(golden, double):
    with jax.enable_x64(double):
        t = jnp.asarray(golden["sd.t"], jnp.float64 if double else jnp.float32)
        discrete, linear, cosine = VPDiscrete.stable_diffusion(), VPLinear(), VPCosine()
        for schedule, name in ((discrete, "sd"), (linear, "linear")):
            close(schedule.log_alpha(t), golden[f"{name}.log_alpha"], double)
            close(schedule.lambda_(t), golden[f"{name}.lambda"], double)
            lambdas = jnp.asarray(golden[f"{name}.lambda"], t.dtype)
            close(schedule.inverse_lambda(lambdas), golden[f"{name}.inverse_lambda"], double)
        for schedule, name, kept in (
            (linear, "vpsde", slice(None)),
            (cosine, "vpsde_cosine", slice(-1)),
        ):
            close(schedule.alpha(t)[kept] ** 2, golden[f"{name}.cum_alpha"][kept], double)
            close(schedule.sigma(t)[kept] ** 2, golden[f"{name}.cum_beta"][kept], double)
            close(
                jnp.sqrt(schedule.squared_diffusion(t))[kept],
                golden[f"{name}.diffusion"][kept],
                double,
            )
            snr, expected = schedule.snr(t)[kept], golden[f"{name}.snr"][kept]
            np.testing.assert_allclose(snr, expected, rtol=1e-9 if double else 1e-4)
            np.testing.assert_allclose(
                1 / snr, golden[f"{name}.nsr"][kept], rtol=1e-9 if double else 1e-4
            )


def test_stable_diffusions_betas_and_their_products_are_the_reference_codes(
    golden, stable_diffusion
):
    np.testing.assert_allclose(stable_diffusion.betas, golden["sd.betas"], rtol=0, atol=1e-15)
    n = np.arange(1, 1001)
    np.testing.assert_allclose(
        stable_diffusion.alpha(n / 1000) ** 2, golden["sd.cum_alphas"][1:], rtol=1e-12
    )
    np.testing.assert_allclose(
        stable_diffusion.sigma(n / 1000) ** 2, golden["sd.cum_betas"][1:], rtol=1e-11
    )


@every_schedule
def test_everything_is_finite_and_alpha_at_most_one(schedule):
    found = single_precision(schedule, whole_range())
    for name in QUANTITIES:
        assert np.isfinite(found[name]).all(), name
    assert (found["alpha"] <= 1.0).all()
    assert (found["sigma"] > 0.0).all()


@every_schedule
def test_single_precision_loses_no_digits_at_either_end(schedule):
    t = whole_range()
    t = t[
        t > 1e-5
    ]  # below, Stable Diffusion's first segment reaches 0, where a relative error means nothing
    found = single_precision(schedule, t)
    for name in QUANTITIES:
        single = found[name].astype(np.float64)
        double = getattr(schedule, name)(t.astype(np.float64))
        assert double.dtype == np.float64
        atol = 1e-5 if name == "lambda_" else 0.0
        np.testing.assert_allclose(single, double, rtol=3e-6, atol=atol, err_msg=name)


@every_schedule
def test_lambda_falls_and_inverse_lambda_inverts_it(schedule):
    t = whole_range().astype(np.float64)
    t = t[t > 1e-5]
    lambdas = schedule.lambda_(t)
    assert (np.diff(lambdas) < 0).all()
    np.testing.assert_allclose(schedule.inverse_lambda(lambdas), t, rtol=1e-11)
    single = jax.jit(schedule.inverse_lambda)(jnp.asarray(lambdas, jnp.float32))
    np.testing.assert_allclose(single, t, rtol=2e-5)


@every_schedule
def test_lambda_is_log_of_alpha_over_sigma_and_snr_its_square(schedule):
    t = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(
        schedule.lambda_(t), np.log(schedule.alpha(t) / schedule.sigma(t)), atol=1e-12
    )
    np.testing.assert_allclose(schedule.snr(t), np.exp(2 * schedule.lambda_(t)), rtol=1e-11)


@every_schedule
def test_the_sde_has_the_schedules_mean_and_variance(schedule, x64):
    t = jnp.linspace(0.0105, 0.9895, 40)  # inside the discrete schedule's segments
    rates = jax.jit(
        lambda t: [jax.vmap(jax.grad(f))(t) for f in (schedule.log_alpha, schedule.lambda_)]
    )
    rate, lambda_rate = rates(t)
    t = np.asarray(t)
    np.testing.assert_allclose(schedule.drift(t), rate, rtol=1e-8)
    np.testing.assert_allclose(
        schedule.squared_diffusion(t), -2 * schedule.sigma(t) ** 2 * lambda_rate, rtol=1e-8
    )


@every_schedule
def test_results_keep_the_shape_and_dtype_of_t(schedule, x64):
    for dtype in (jnp.float32, jnp.float64):
        t = jax.ShapeDtypeStruct((2, 3), dtype)
        for name in (*QUANTITIES, "model_time", "inverse_lambda"):
            found = jax.eval_shape(getattr(schedule, name), t)
            assert (found.shape, found.dtype) == ((2, 3), dtype), name
        assert isinstance(schedule.alpha(0.3), float | np.ndarray)


def test_below_its_first_time_the_discrete_schedule_follows_its_first_segment(stable_diffusion):
    at = lambda t: float(stable_diffusion.log_alpha(t))  # noqa: E731
    assert at(0.0004) == pytest.approx(at(0.001) - 0.6 * (at(0.002) - at(0.001)), rel=1e-12)


def test_the_network_is_given_its_own_time(stable_diffusion):
    t = np.asarray([0.001, 0.412, 1.0])
    np.testing.assert_allclose(stable_diffusion.model_time(t), [1.0, 412.0, 1000.0], rtol=1e-12)
    for schedule in (VPLinear(), VPCosine(), RectifiedFlow()):
        np.testing.assert_allclose(schedule.model_time(t), 999 * t)


def test_training_times_cover_their_distribution(stable_diffusion):
    key = jax.random.key(0)
    n = np.asarray(stable_diffusion.sample_time(key, (20000,))) * 1000
    np.testing.assert_allclose(n, np.round(n), atol=1e-3)
    assert (round(n.min()), round(n.max())) == (1, 1000)
    t = np.asarray(VPLinear().sample_time(key, (20000,)))
    assert t.min() > 0.0
    assert t.max() <= 1.0
    assert t.mean() == pytest.approx(0.5, abs=0.01)
    assert n.mean() == pytest.approx(500.5, abs=10)


def test_schedules_are_hashable_values():
    assert (
        len({VPLinear(), VPLinear(), VPLinear(0.2), VPDiscrete((0.1, 0.2)), VPDiscrete((0.1, 0.2))})
        == 3
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VPDiscrete((0.1,)), "at least two betas, found 1"),
        (lambda: VPDiscrete((0.1, 1.5)), "found 1.5"),
        (lambda: VPLinear(beta_min=3.0, beta_max=1.0), "0 < beta_min <= beta_max"),
        (lambda: VPCosine(s=0.0), "s > 0"),
    ],
)
def test_bad_parameters_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_betas_may_be_an_array_and_the_schedule_still_hashes():
    betas = np.linspace(1e-3, 2e-2, 10)
    assert VPDiscrete(betas) == VPDiscrete(tuple(betas.tolist()))
    assert hash(VPDiscrete(betas)) == hash(VPDiscrete(list(betas)))
