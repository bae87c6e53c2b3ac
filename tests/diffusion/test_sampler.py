import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jobs.runs import ROOT, environment
from uvit_jax.diffusion.registry import SOLVERS
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import VPDiscrete, VPLinear
from uvit_jax.errors import UserError

SHAPE = (4, 4, 2)
PARAMS = {"w": jnp.asarray(0.3)}


def network(params, x, time, condition):
    """A network whose prediction depends on its weight, its label or context, and its time."""
    out = params["w"] * x + 1e-4 * time[:, None, None, None]
    if condition is None:
        return out
    if jnp.issubdtype(condition.dtype, jnp.integer):
        return out + 0.02 * condition[:, None, None, None]
    return out + condition.mean((1, 2))[:, None, None, None]


def sampler(null_condition=10, schedule=VPLinear(), **options):  # noqa: B008
    names = ("sharding", "return_trajectory", "weak_network", "prediction")
    extra = {name: options.pop(name) for name in names if name in options}
    config = SamplerConfig(**({"steps": 6} | options))
    return Sampler(network, schedule, SHAPE, config=config, null_condition=null_condition, **extra)


def draw(one, indices, **options):
    return one(PARAMS, **({"seed": 0, "indices": np.asarray(indices)} | options))


@functools.cache
def shared(**options):
    """A sampler that several tests use, compiled once."""
    return sampler(**options)


CONFIGS = [{}, {"solver": "sde-dpmsolver++"}, {"solver": "euler_maruyama"}, {"solver": "ddpm"}]
CONFIGS += [{"solver": "ddim", "eta": 0.5}, {"method": "adaptive", "order": 3}]


@pytest.mark.parametrize(
    "options", CONFIGS, ids=lambda options: "-".join(map(str, options.values())) or "default"
)
def test_sample_i_depends_on_seed_and_i_alone(options):
    one = shared(**options)
    labels = np.asarray([3, 1, 4, 1, 5])
    together = draw(one, [0, 1, 2, 3, 4], condition=labels, guidance_scale=0.5)
    assert together.shape == (5, *SHAPE)
    assert together.dtype == jnp.float32
    order = np.asarray([4, 2, 0, 1, 3])
    moved = draw(one, order, condition=labels[order], guidance_scale=0.5)
    np.testing.assert_allclose(moved, together[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [CONFIGS[1], CONFIGS[-1]], ids=["sde", "adaptive"])
def test_sample_i_does_not_depend_on_the_size_of_its_batch(options):
    labels = np.asarray([3, 1, 4, 1, 5])
    together = draw(shared(**options), np.arange(5), condition=labels, guidance_scale=0.5)
    fewer = draw(shared(**options), [4, 2], condition=labels[[4, 2]], guidance_scale=0.5)
    np.testing.assert_allclose(fewer, together[np.asarray([4, 2])], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_can_be_asked_for_by_name(solver):
    config, x = (
        SamplerConfig(solver=solver, steps=6),
        jax.ShapeDtypeStruct((3, *SHAPE), jnp.float32),
    )
    predict = lambda x, t: x * t[:, None, None, None]  # noqa: E731
    options = {"prediction": "v", "key": jax.random.key(0), "return_trajectory": True}
    found, trajectory = jax.eval_shape(lambda x: config.solve(predict, x, VPLinear(), **options), x)
    assert found.shape == x.shape
    assert trajectory.states.shape == ((4 if solver == "heun" else 7), *x.shape)
    assert trajectory.times.shape == trajectory.states.shape[:1]


def test_seeds_and_indices_give_different_samples():
    one = shared(solver="ddpm")
    options = {"condition": np.ones(5, int), "guidance_scale": 0.5}
    base, other_seed = (
        draw(one, np.arange(5), **options),
        draw(one, np.arange(5), seed=1, **options),
    )
    assert not np.allclose(base, other_seed)
    assert not np.allclose(base[0], base[1])


def test_new_seeds_labels_scales_and_weights_compile_nothing(compilations):
    one = sampler()
    labels = np.arange(3)
    first = draw(one, [0, 1, 2], condition=labels, guidance_scale=0.5)
    before = compilations()
    scaled = draw(one, [0, 1, 2], condition=labels, guidance_scale=2.0)
    relabelled = draw(one, [0, 1, 2], condition=labels + 3, guidance_scale=0.5)
    reseeded = draw(one, [5, 6, 7], condition=labels, guidance_scale=0.5, seed=2**32 - 1)
    retrained = one(
        {"w": jnp.asarray(0.4)}, seed=0, indices=np.arange(3), condition=labels, guidance_scale=0.5
    )
    assert compilations() == before
    for other in (scaled, relabelled, reseeded, retrained):
        assert not np.allclose(first, other)
    draw(one, [0, 1, 2], condition=labels, guidance_scale=0.0)
    unguided = compilations()
    assert unguided > before
    draw(one, [7, 8, 9], condition=labels, guidance_scale=0.0)
    assert compilations() == unguided


def test_without_guidance_the_network_sees_single_rows():
    seen = []

    def counted(params, x, time, condition):
        seen.append(x.shape[0])
        return network(params, x, time, condition)

    one = Sampler(counted, VPLinear(), SHAPE, config=SamplerConfig(steps=3), null_condition=10)
    for scale, rows in ((0.0, {2}), (1.0, {4})):
        seen.clear()
        draw(one, [0, 1], condition=np.arange(2), guidance_scale=scale)
        assert set(seen) == rows


def test_contexts_and_no_condition_at_all():
    context = jax.random.normal(jax.random.key(0), (2, 5, 3))
    one = sampler(null_condition=np.zeros((5, 3), np.float32))
    guided = draw(one, [0, 1], condition=context, guidance_scale=1.0)
    # The empty context adds nothing to this network's prediction, so a scale of 1 is the context
    # counted twice.
    np.testing.assert_allclose(
        guided, draw(one, [0, 1], condition=2 * context), rtol=1e-4, atol=1e-5
    )
    assert draw(sampler(null_condition=None), [0, 1]).shape == (2, *SHAPE)


def test_the_network_is_given_the_schedules_time():
    def timed(params, x, time, condition):
        return jnp.broadcast_to(time[:, None, None, None], x.shape)

    schedule = VPDiscrete.stable_diffusion()
    config = SamplerConfig(solver="ddim", steps=1, t_start=0.5, t_end=0.25)
    found = draw(Sampler(timed, schedule, SHAPE, config=config, prediction="x0"), [0])
    noise = draw(
        Sampler(lambda p, x, t, c: 0 * x, schedule, SHAPE, config=config, prediction="x0"), [0]
    )
    alpha, sigma = schedule.alpha(np.asarray([0.5, 0.25])), schedule.sigma(np.asarray([0.5, 0.25]))
    np.testing.assert_allclose(
        found - noise, 500 * (alpha[1] - sigma[1] / sigma[0] * alpha[0]), rtol=1e-4
    )


def test_the_trajectory_has_every_state():
    end, trajectory = draw(sampler(return_trajectory=True), [0, 1], condition=np.arange(2))
    assert trajectory.states.shape == (7, 2, *SHAPE)
    np.testing.assert_array_equal(trajectory.states[-1], end)
    np.testing.assert_allclose(trajectory.times, np.linspace(1, 1e-3, 7), rtol=1e-5)


def test_guidance_stops_outside_its_interval():
    labels = np.arange(2)
    never = sampler(guidance_low=0.0, guidance_high=1e-4)
    np.testing.assert_allclose(
        draw(never, [0, 1], condition=labels, guidance_scale=3.0),
        draw(shared(), [0, 1], condition=labels),
        rtol=1e-6,
    )
    partly, always = sampler(guidance_low=0.3, guidance_high=0.7), shared()
    assert not np.allclose(
        *(draw(one, [0, 1], condition=labels, guidance_scale=3.0) for one in (partly, always))
    )


def test_autoguidance_asks_the_weak_network_with_its_own_weights():
    one = sampler(guidance="autoguidance", weak_network=network)
    options = {"condition": np.arange(2), "guidance_scale": 1.0}
    same = draw(one, [0, 1], weak_params=PARAMS, **options)
    np.testing.assert_allclose(
        same, draw(shared(), [0, 1], condition=np.arange(2)), rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(same, draw(one, [0, 1], weak_params={"w": jnp.asarray(0.1)}, **options))


def test_a_sharding_lays_out_the_batch():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    found, _ = draw(
        sampler(sharding=sharding, return_trajectory=True), [0, 1], condition=np.arange(2)
    )
    np.testing.assert_allclose(found, draw(shared(), [0, 1], condition=np.arange(2)), rtol=1e-6)
    assert found.sharding.is_equivalent_to(sharding, found.ndim)


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_devices(tmp_path):
    program = """
        import sys, jax, numpy as np
        from uvit_jax.diffusion.sampler import Sampler
        from uvit_jax.diffusion.sampler_config import SamplerConfig
        from uvit_jax.diffusion.schedules import VPLinear
        network = lambda p, x, t, c: p * x + 0.02 * c[:, None, None, None]
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        config = SamplerConfig(solver="sde-dpmsolver++", steps=10)
        options = {"config": config, "null_condition": 10, "sharding": sharding}
        one, rows = Sampler(network, VPLinear(), (4, 4, 2), **options), np.arange(8)
        found = one(np.float32(0.3), seed=0, indices=rows, condition=rows, guidance_scale=0.5)
        assert len(found.sharding.device_set) == jax.device_count()
        np.save(sys.argv[1], found)
        try:
            one(np.float32(0.3), seed=0, indices=np.arange(7), condition=np.arange(7))
        except ValueError as error:
            assert "the batch has 7 rows" in str(error), error
            assert jax.device_count() > 1
    """
    found = []
    for devices in (1, 4):
        path = tmp_path / f"{devices}.npy"
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(path)],
            check=True,
            cwd=ROOT,
            env=environment(devices),
        )
        found.append(np.load(path))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"solver": "plms"},
            r"solver is 'plms', expected one of dpmsolver\+\+, dpmsolver, sde-dpmsolver\+\+, "
            r"euler_mar",
        ),
        ({"spacing": "karras"}, "spacing is 'karras'"),
        ({"guidance": "cfg"}, "guidance is 'cfg', expected one of classifier_free, autoguidance"),
        ({"steps": 1}, "steps is 1, expected at least the order, 2"),
        ({"steps": 1, "solver": "ddpm"}, "steps is 1, expected at least 2"),
        ({"t_end": 2.0}, "t_end is 2.0"),
        (
            {"guidance_low": 0.5, "guidance_high": 0.2},
            "guidance_low is 0.5 and guidance_high 0.2, expected 0 <= ",
        ),
        (
            {"solver": "heun", "thresholding": True},
            "thresholding needs a solver among .*, found 'heun'",
        ),
        ({"eta": -1.0}, "eta is -1.0, expected a number from 0 to 1"),
        ({"atol": -1.0}, "atol is -1.0, expected 0 or more, and finite"),
        ({"rtol": float("nan")}, "rtol is nan, expected 0 or more, and finite"),
        ({"atol": 0.0, "rtol": 0.0}, "atol and rtol are both 0, expected one of them above 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0, expected at least 1"),
        (
            {"method": "adaptive", "return_trajectory": True},
            "method 'adaptive' keeps no trajectory",
        ),
        ({"guidance": "autoguidance"}, "needs a weak_network, found None"),
        ({"prediction": "eps"}, "prediction is 'eps', expected one of"),
    ],
)
def test_a_bad_configuration_is_named_when_it_is_made(options, words):
    with pytest.raises(UserError, match=words):
        sampler(**options)


@pytest.mark.parametrize(
    ("null_condition", "options", "words"),
    [
        (
            None,
            {"condition": np.arange(2), "guidance_scale": 0.4},
            "guidance_scale is not 0, but null_condition is None",
        ),
        (10, {"guidance_scale": 0.4}, "guidance_scale is not 0, but condition is None"),
        (10, {"condition": np.arange(3)}, "condition has 3 rows, expected 2, one for each index"),
        (10, {"seed": -1}, r"seed is -1, expected an integer from 0 to 2\*\*32 - 1"),
    ],
)
def test_a_bad_call_is_named(null_condition, options, words):
    with pytest.raises(UserError, match=words):
        draw(sampler(null_condition), [0, 1], **options)


def evaluations(**options):
    """Network evaluations of a solve: counted, and as the config reports them."""
    asked = []

    def predict(x, t):
        if not isinstance(x, jax.core.Tracer):  # the shape of its answer is asked for once
            asked.append(t)
        return 0.1 * x

    config = SamplerConfig(**options)
    x = jnp.ones((1, 2, 2, 1))
    with jax.disable_jit():  # or loops are traced once for all their turns
        config.solve(
            predict,
            x,
            VPLinear(),
            prediction="noise",
            key=jax.random.key(0),
            return_trajectory=False,
        )
    return len(asked), config.evaluations


DPM_SOLVERS = [
    {"solver": solver, "method": method, "order": order}
    for solver in ("dpmsolver++", "dpmsolver")
    for method in ("multistep", "singlestep", "singlestep_fixed", "singlestep_fast")
    for order in (1, 2, 3)
    if not (method == "singlestep_fast" and order == 1)
]
OTHER_SOLVERS = [
    {"solver": solver} for solver in SOLVERS if solver not in ("dpmsolver++", "dpmsolver")
]


@pytest.mark.parametrize(
    "options", DPM_SOLVERS + OTHER_SOLVERS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_the_evaluations_reported_are_those_there_were(options):
    for steps in (6, 7, 8):
        counted, reported = evaluations(**options, steps=steps)
        assert counted == reported, steps
    counted, reported = evaluations(**options, steps=7, denoise_to_zero=True)
    assert counted == reported
    assert SamplerConfig(**options, steps=7).evaluations == (
        6 if options.get("method") == "singlestep_fixed" and options["order"] > 1 else 7
    )


def test_an_adaptive_solver_reports_no_number_of_evaluations():
    assert SamplerConfig(method="adaptive", order=2).evaluations is None
    # The method is the DPM-Solvers' own, whatever is left standing in a config.
    assert SamplerConfig(solver="heun", method="adaptive", steps=9).evaluations == 9
    assert (
        SamplerConfig(solver="ddim", method="singlestep_fixed", order=2, steps=9).evaluations == 9
    )


def test_an_adaptive_sampler_that_does_not_converge_says_so():
    one = sampler(method="adaptive", order=2, max_evaluations=10)
    with pytest.raises(UserError, match="did not reach t_end within 10 network evaluations"):
        draw(one, [0, 1], condition=np.arange(2))
