import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.reference_weights import golden_config, nhwc, read_golden, uvit_weights
from uvit_jax.diffusion.schedules import VPDiscrete, VPLinear
from uvit_jax.interop import official
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.randomness import Stream, stream_key
from uvit_jax.training import ema
from uvit_jax.training.network import abstract_network
from uvit_jax.training.optimizer import learning_rate, make_optimizer
from uvit_jax.training.optimizer_config import OptimizerConfig
from uvit_jax.training.state import TrainState, create
from uvit_jax.training.step import Objective, apply_gradients, draw, make_train_step, mean_loss


@pytest.mark.parametrize(
    ("name", "schedule", "time_scale"),
    [("train_discrete", VPDiscrete.stable_diffusion(), 1000), ("train_continuous", VPLinear(), 1)],
)
def test_eight_official_steps_give_the_official_losses_and_weights(
    golden_dir, name, schedule, time_scale
):
    golden, metadata = read_golden(golden_dir / f"{name}.safetensors")
    hparams = json.loads(metadata["hparams"])
    config = golden_config(metadata)
    optimizer = make_optimizer(
        OptimizerConfig(
            lr=hparams["lr"],
            warmup_steps=hparams["warmup_steps"],
            betas=tuple(hparams["betas"]),
            weight_decay=hparams["weight_decay"],
        ),
        total_steps=hparams["n_steps"],
    )
    graphdef, network, _ = abstract_network(config)
    params = nnx.to_pure_dict(nnx.state(official.load(uvit_weights(config), config)))
    objective = Objective(schedule)

    @jax.jit
    def step(state, x0, t, noise, label):
        loss, grads = jax.value_and_grad(
            lambda p: mean_loss(network, objective, p, x0, t, noise, label)
        )(state.params)
        return apply_gradients(state, grads, optimizer, hparams["ema_rate"]), loss

    state = create(lambda key: params, optimizer, 0)
    losses = []
    for i in range(hparams["n_steps"]):
        x0, noise = nhwc(golden[f"step{i}.z0"]), nhwc(golden[f"step{i}.eps"])
        t = golden[f"step{i}.t"].astype(np.float32) / time_scale
        state, loss = step(state, x0, t, noise, golden[f"step{i}.y"].astype(np.int32))
        losses.append(float(loss))
    np.testing.assert_allclose(losses, golden["losses"], atol=1e-5, rtol=0)
    for prefix, weights in (("final", state.params), ("ema", state.ema)):
        for key, array in official.dump(nnx.merge(graphdef, weights)).items():
            np.testing.assert_allclose(
                array, golden[f"{prefix}.{key}"], atol=2e-5, rtol=0, err_msg=f"{prefix}.{key}"
            )


def test_warm_up_counts_from_zero_and_the_first_update_moves_nothing():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, weight_decay=0.1)
    rates = [float(learning_rate(config, jnp.asarray(step), 10)) for step in (0, 1, 4, 9)]
    assert rates == [0.0, 0.25, 1.0, 1.0]
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.ones(3)}
    updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
    assert not np.any(updates["w"])


def test_cosine_decay_ends_at_zero_with_the_last_step():
    config = OptimizerConfig(lr=2.0, warmup_steps=2, decay="cosine")
    rates = [float(learning_rate(config, jnp.asarray(step), 12)) for step in (2, 7, 12)]
    np.testing.assert_allclose(rates, [2.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_the_rate_of_a_number_is_that_of_an_array_and_asks_no_device(decay):
    config = OptimizerConfig(lr=3e-4, warmup_steps=5, decay=decay)
    for step in (0, 3, 5, 11, 20):
        rate = learning_rate(config, step, 20)
        assert isinstance(rate, np.floating)
        np.testing.assert_allclose(
            rate, learning_rate(config, jnp.asarray(step), 20), rtol=1e-5, atol=1e-10
        )


def test_gradient_clipping_bounds_the_global_norm():
    optimizer = make_optimizer(
        OptimizerConfig(grad_clip=0.5, warmup_steps=0, betas=(0.0, 0.0), eps=1.0), 1
    )
    params = {"w": jnp.zeros(1)}
    updates, _ = optimizer.update({"w": jnp.array([30.0])}, optimizer.init(params), params)
    # With both betas 0 the update is -lr g / (|g| + eps) of the clipped gradient g = 0.5.
    np.testing.assert_allclose(updates["w"], -2e-4 * 0.5 / 1.5, rtol=1e-5)


def test_clipping_is_the_same_as_optax_chained_before_adamw():
    config = OptimizerConfig(grad_clip=0.5, warmup_steps=2)
    chained = optax.chain(
        optax.clip_by_global_norm(0.5),
        make_optimizer(dataclasses.replace(config, grad_clip=0.0), 9),
    )
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    updates = []
    for optimizer in (make_optimizer(config, 9), chained):
        state, now = optimizer.init(params), params
        for size in (0.1, 3.0, 30.0):
            grads = jax.tree.map(lambda p, size=size: size * jnp.cos(7 * p), now)
            update, state = optimizer.update(grads, state, now)
            now = optax.apply_updates(now, update)
        updates.append(now)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *updates)))


def test_the_optimizer_is_optax_adamw_to_the_bit_and_traced_once_a_shape(monkeypatch):
    made, traces = [], []

    def adamw(*args, **kwargs):
        plain = optax_adamw(*args, **kwargs)
        made.append(plain)

        def update(grads, state, params):
            traces.append(grads.shape)
            return plain.update(grads, state, params)

        return optax.GradientTransformation(plain.init, update)

    optax_adamw = optax.adamw
    monkeypatch.setattr(optax, "adamw", adamw)
    optimizer = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=2, decay="cosine"), 9)
    blocks = [
        {"kernel": np.full((3, 2), 0.1 * i, "f4"), "bias": np.full(2, -0.2 * i, "f4")}
        for i in range(4)
    ]
    results = []
    for update in (optimizer.update, made[0].update):
        step = jax.jit(update)
        state, now = optimizer.init(blocks), blocks
        for _ in range(4):
            updates, state = step(jax.tree.map(lambda p: jnp.cos(7 * p), now), state, now)
            now = optax.apply_updates(now, updates)
        results.append((now, state))
    assert sorted(traces) == [(2,), (3, 2)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert int(results[0][1][0].count) == 4
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *results)))


def test_ema_is_the_weighted_mean():
    assert float(ema.update({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, 0.75)["w"]) == 1.5


@pytest.fixture(scope="module")
def tiny():
    config = UViTConfig(
        image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2, num_classes=4
    )
    _, network, init = abstract_network(config)
    optimizer = optax.adam(1e-2)
    batch = {"x": jnp.zeros((512, 4, 4, 1)), "label": jnp.zeros(512, jnp.int32)}
    return network, init, optimizer, batch


def test_a_step_is_a_function_of_seed_and_step_number_alone(tiny):
    network, init, optimizer, batch = tiny
    objective = Objective(VPLinear(), p_uncond=0.5, null_condition=3)
    step, other_step = (
        jax.jit(make_train_step(network, objective, optimizer, ema_rate=0.9, seed=seed))
        for seed in (0, 1)
    )
    state = jax.jit(lambda: create(init, optimizer, 0))()
    one, metrics = step(state, batch)
    again, _ = step(state, batch)
    _, other_metrics = other_step(state, batch)
    # Not to the bit: a GPU may sum a convolution's gradient in another order. The kill tests ask a
    # CPU for bits.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        one.params,
        again.params,
    )
    assert metrics["loss"] != other_metrics["loss"]
    _, later_metrics = step(
        TrainState(state.step + 1, state.params, state.ema, state.opt_state), batch
    )
    assert metrics["loss"] != later_metrics["loss"]
    assert int(one.step) == 1


def test_latents_are_drawn_with_a_key_of_their_own(tiny):
    network, _, optimizer, batch = tiny
    keys = []

    class Drawn(Exception):
        pass

    def inputs(frozen, x, key):
        keys.append(np.asarray(jax.random.key_data(key)).tolist())
        raise Drawn

    step = make_train_step(
        network, Objective(VPLinear()), optimizer, ema_rate=0.9, seed=0, inputs=inputs
    )
    state = TrainState(jnp.asarray(5), params={}, ema={}, opt_state={})
    with pytest.raises(Drawn):
        step(state, batch)
    # Those of the step's times, noises and dropped labels.
    key = jax.random.fold_in(stream_key(0, Stream.STEP), 5)
    others = [key, *jax.random.split(key, 3)]
    assert keys[0] not in [np.asarray(jax.random.key_data(other)).tolist() for other in others]


def test_labels_are_dropped_to_the_empty_one_at_the_asked_rate(tiny):
    *_, batch = tiny
    objective = Objective(VPLinear(), p_uncond=0.25, null_condition=3)
    t, noise, label = draw(objective, batch["x"], batch["label"], jax.random.key(0))
    assert t.shape == (512,)
    assert noise.shape == (512, 4, 4, 1)
    assert set(np.unique(label)) == {0, 3}
    assert np.mean(np.asarray(label) == 3) == pytest.approx(0.25, abs=0.06)
    _, _, kept = draw(Objective(VPLinear()), batch["x"], batch["label"], jax.random.key(0))
    assert np.array_equal(kept, batch["label"])


def test_a_batch_in_parts_gives_the_whole_batchs_loss_and_gradients():
    config = UViTConfig(
        image_size=4, patch_size=2, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=4
    )
    _, network, init_params = abstract_network(config)
    objective = Objective(VPLinear(), p_uncond=0.5, null_condition=3)
    optimizer = optax.sgd(1.0)  # the update is the gradient
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.standard_normal((12, 4, 4, 1), np.float32),
        "label": rng.integers(0, 3, 12).astype(np.int32),
    }
    state = jax.jit(lambda: create(init_params, optimizer, 0))()
    found = {}
    for microbatches in (1, 3):
        step = make_train_step(
            network, objective, optimizer, ema_rate=0.9, seed=0, microbatches=microbatches
        )
        found[microbatches] = jax.jit(step)(state, batch)
    (whole, metrics) = found.pop(1)
    for after, measured in found.values():
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(measured[name], metrics[name], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5),
            after.params,
            whole.params,
        )


def test_a_batch_in_parts_holds_one_parts_activations():
    config = UViTConfig(
        image_size=16, patch_size=2, in_channels=1, embed_dim=64, depth=1, num_heads=4
    )
    _, network, init_params = abstract_network(config)
    state = jax.eval_shape(lambda: create(init_params, optax.sgd(1.0), 0))
    batch = {"x": jax.ShapeDtypeStruct((32, 16, 16, 1), np.float32)}

    def memory(microbatches):
        step = make_train_step(
            network,
            Objective(VPLinear()),
            optax.sgd(1.0),
            ema_rate=0.9,
            seed=0,
            microbatches=microbatches,
        )
        return jax.jit(step).lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert memory(8) < memory(1) / 4
