import json
import shutil
import threading

import jax
import numpy as np
import optax
import pytest

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.network import abstract_network
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.optimizer_config import OptimizerConfig
from uvit_jax.training.state import abstract, create_sharded

CONFIG = UViTConfig(image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2)
OPTIMIZER = optax.adamw(1e-3)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture
def batches(mesh):
    source = ArrayData(
        "ramp", np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1), np.arange(10), ["0"] * 10
    )
    iterator = train_batches(
        source, fields=("label",), batch_size=3, seed=0, sharding=batch_sharding(mesh)
    )
    yield iterator
    iterator.close()


@pytest.fixture(scope="module")
def state(mesh):
    _, _, init = abstract_network(CONFIG)
    return create_sharded(init, OPTIMIZER, 0, abstract(init, OPTIMIZER, mesh))


def at_step(state, step):
    return type(state)(state.step + step, state.params, state.ema, state.opt_state)


def template(mesh, config=CONFIG, optimizer=OPTIMIZER):
    return abstract(abstract_network(config)[2], optimizer, mesh)


def test_state_and_data_position_come_back_bit_for_bit(tmp_path, mesh, state, batches):
    next(batches)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 7), batches)
    expected = [np.asarray(next(batches)["label"]) for _ in range(4)]
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(template(mesh), batches)
    assert int(restored.step) == 7
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, restored.opt_state, state.opt_state)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, restored.params, state.params)))
    got = [np.asarray(next(batches)["label"]) for _ in range(4)]
    assert np.array_equal(got, expected)
    checkpoints.close()


def test_a_checkpoint_without_a_version_is_read_and_a_newer_one_is_refused(
    tmp_path, mesh, state, batches
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, batches)
    checkpoints.close()
    path = tmp_path / "0" / "data" / "metadata"
    data = json.loads(path.read_text())
    assert data.pop("format_version") == 1

    path.write_text(json.dumps(data))
    checkpoints = Checkpoints(tmp_path)
    assert int(checkpoints.restore(template(mesh), batches).step) == 0

    path.write_text(json.dumps({"format_version": 2}))
    for read in (
        lambda: checkpoints.restore(template(mesh), batches),
        lambda: checkpoints.restore_weights(template(mesh).ema, weights="ema"),
        lambda: checkpoints.ema_rates(0),
    ):
        with pytest.raises(
            UserError, match=r"/0: format_version is 2, expected at most 1: update uvit_jax"
        ):
            read()
    checkpoints.close()


def test_the_last_and_every_mth_are_kept(tmp_path, state, batches):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in (0, 2, 4, 6, 8, 10, 12, 14):
        checkpoints.save(at_step(state, step), batches)
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [
        0,
        4,
        8,
        12,
        14,
    ]


def test_a_checkpoint_knows_the_rates_that_its_average_has_had(tmp_path, state, batches):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches, ((0, 0.9), (2, 0.99)))
    checkpoints.close()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.ema_rates(3) == ((0, 0.9), (2, 0.99))
    (tmp_path / "3" / "data" / "metadata").write_text('{"next_index": 3}')
    assert reader.ema_rates(3) == ()  # as they were before rates were kept
    (tmp_path / "3" / "data" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"/3 is damaged \(.*delete that folder"):
        reader.ema_rates(3)


def test_an_older_position_counts_batches_of_the_size_that_they_had(tmp_path, mesh, state, batches):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 5), batches)
    checkpoints.close()
    (tmp_path / "5" / "data" / "metadata").write_text('{"next_index": 5}')
    for batch_size, position in ((None, 15), (7, 35)):
        reader = Checkpoints(tmp_path)
        reader.restore(template(mesh), batches, batch_size=batch_size)
        reader.close()
        assert batches.get_state() == {"next_example": position}


def test_another_architecture_is_refused_by_name_before_anything_is_read(
    tmp_path, mesh, state, batches
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 1), batches)
    checkpoints.close()
    wider = UViTConfig(image_size=4, in_channels=1, embed_dim=12, depth=3, num_heads=2)
    with pytest.raises(
        UserError, match=r"another architecture: .* has shape \(.*8.*\), the config's has \(.*12"
    ):
        Checkpoints(tmp_path).restore(template(mesh, wider), batches)


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (1.0, 0.0)], ids=["on", "off"])
def test_a_run_goes_on_with_clipping_turned(tmp_path, mesh, batches, before, after):
    made, wanted = (make_optimizer(OptimizerConfig(grad_clip=clip), 10) for clip in (before, after))
    _, _, init = abstract_network(CONFIG)
    state = create_sharded(init, made, 0, abstract(init, made, mesh))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 1), batches)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(template(mesh, optimizer=wanted), batches)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_an_optimizer_of_another_structure_is_told_and_nothing_is_to_be_deleted(
    tmp_path, mesh, state, batches
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 1), batches)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    other = optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZER)
    with pytest.raises(
        UserError, match=r"/1 holds an optimizer's state of another structure: 0/count .*"
    ) as caught:
        checkpoints.restore(template(mesh, optimizer=other), batches)
    checkpoints.close()
    assert not any(word in str(caught.value) for word in ("damaged", "delete"))


def test_a_step_that_another_host_sees_is_waited_for(tmp_path, mesh, state, batches):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 1), batches)
    checkpoints.close()
    late, other = Checkpoints(tmp_path), Checkpoints(tmp_path)
    other.save(at_step(state, 2), batches)
    other.close()
    assert late.latest_step == 1  # what it listed when it was opened
    late.await_step(2)
    assert int(late.restore(template(mesh), batches, 2).step) == 2
    assert int(late.restore(template(mesh), batches, 1).step) == 1
    with pytest.raises(
        UserError,
        match=r"holds no step 3 on .*, which another host of the run sees, expected a folder",
    ):
        late.await_step(3, seconds=0.1)
    late.close()


def test_weights_alone_can_be_read_and_a_missing_step_names_those_there_are(
    tmp_path, mesh, state, batches
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches)
    checkpoints.close()
    reader = Checkpoints(tmp_path, read_only=True)
    ema, step = reader.restore_weights(template(mesh).ema, weights="ema")
    assert step == 3
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ema, state.ema)))
    with pytest.raises(UserError, match="holds no step 5, expected one of 3"):
        reader.restore_weights(template(mesh).ema, weights="ema", step=5)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "nowhere", read_only=True).restore_weights(
            template(mesh).ema, weights="ema"
        )


@pytest.mark.parametrize(("step", "at_once"), [(None, True), (None, False), (3, True)])
def test_a_checkpoint_that_training_removes_while_it_is_read_is_not_damaged(
    tmp_path, mesh, state, batches, monkeypatch, step, at_once
):
    training = Checkpoints(tmp_path, keep_last=1)
    training.save(at_step(state, 3), batches)
    training._manager.wait_until_finished()
    reading, find_step, found = Checkpoints(tmp_path, read_only=True), Checkpoints.find_step, []

    def then_removed(self, wanted=None):
        found.append(find_step(self, wanted))
        if len(found) == 1:
            training.save(at_step(state, 4), batches)
            training._manager.wait_until_finished()
            if not at_once:  # its files go one after another
                (tmp_path / "3" / "data").mkdir(parents=True)
                threading.Timer(0.3, shutil.rmtree, [tmp_path / "3"]).start()
        return found[-1]

    monkeypatch.setattr(Checkpoints, "find_step", then_removed)
    wanted = template(mesh).params
    if step is None:
        assert reading.restore_weights(wanted, weights="params")[1] == 4
    else:
        with pytest.raises(
            UserError, match=rf"^{tmp_path}/3 was removed while it was read, by a run that trains"
        ):
            reading.restore_weights(wanted, weights="params", step=step)
    reading.close()
    training.close()


def test_a_step_that_goes_while_the_folder_is_listed_is_listed_no_more(
    tmp_path, mesh, state, batches, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches)
    checkpoints.close()
    reading = Checkpoints(tmp_path, read_only=True)
    reload, failures = reading._manager.reload, [FileNotFoundError("3"), FileNotFoundError("3")]

    def listing():
        if failures:
            raise failures.pop()
        reload()

    monkeypatch.setattr(reading._manager, "reload", listing)
    shutil.rmtree(tmp_path / "3")
    with pytest.raises(UserError, match=f"^{tmp_path}/3 was removed while it was read"):
        reading._check(3, "params", template(mesh).params)
    assert not failures
    reading.close()


@pytest.mark.parametrize("lost", ["*", "d/*"], ids=["everything", "data"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path, mesh, state, batches, lost):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches)
    checkpoints.close()
    for path in [path for path in (tmp_path / "3" / "ema").rglob(lost) if path.is_file()]:
        path.unlink()
    with pytest.raises(UserError, match=r"/3 is damaged \(.*delete that folder"):
        Checkpoints(tmp_path, read_only=True).restore_weights(template(mesh).ema, weights="ema")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: bytes(len(data))], ids=["cut", "zeros"]
)
def test_arrays_that_cannot_be_read_are_damage(tmp_path, mesh, state, batches, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches)
    checkpoints.close()
    largest = max((tmp_path / "3" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(damage(largest.read_bytes()))
    with pytest.raises(UserError, match=r"/3 is damaged \(.*delete that folder") as caught:
        Checkpoints(tmp_path).restore(template(mesh), batches)
    assert "\n" not in str(caught.value)


def test_what_orbax_says_of_an_array_it_cannot_read_is_told_without_the_details(
    tmp_path, mesh, state, batches
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 3), batches)
    checkpoints.close()

    def fails(step, args):
        raise Exception(
            "Encountered error while reading array index: (1,). See full TensorStore details: x"
        )

    reader = Checkpoints(tmp_path)
    reader._manager.restore = fails
    with pytest.raises(
        UserError, match=r"/3 is damaged \(Encountered error .* index: \(1,\)\): delete"
    ):
        reader.restore(template(mesh), batches)
    reader.close()
