"""A workdir's config.json: read back, and compared with the config that goes on with its run."""

import dataclasses
import json
import pathlib

import pytest

from tests.jobs.digits_config import experiment
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment, resolve
from uvit_jax.experiment.saved_config import (
    changes,
    check_architecture,
    check_meaning,
    check_run,
    config_of_run,
    save_config,
    saved_config,
    to_save,
)


def write_config(workdir: pathlib.Path, made: Experiment) -> None:
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(made)))


def test_a_run_is_described_by_its_saved_config(tmp_path):
    assert saved_config(tmp_path) is None
    made = experiment(train__seed=5)
    write_config(tmp_path, made)
    assert saved_config(tmp_path)["train"]["seed"] == 5
    assert resolve(config_of_run(tmp_path)) == made


def test_a_config_carries_its_version_and_a_newer_one_is_refused(tmp_path):
    save_config(to_save(experiment()), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert next(iter(values.items())) == ("format_version", 1)
    assert changes(to_save(experiment()), saved_config(tmp_path)) == []

    path.write_text(json.dumps({"format_version": 2, "network": {}}))
    with pytest.raises(
        UserError, match=r"config.json: format_version is 2, expected at most 1: update uvit_jax"
    ):
        config_of_run(tmp_path)


def test_a_saved_config_that_is_no_json_or_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} holds no config.json"):
        config_of_run(tmp_path)
    for junk in (b"{not json", b"\xff\xfe\x00", b""):
        (tmp_path / "config.json").write_bytes(junk)
        with pytest.raises(
            UserError, match=f"^{tmp_path}/config.json can't be read as the config of a run"
        ):
            saved_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 7),
        ("embed_dim", 64),
        ("skip", "add"),
        ("time", "adaln"),
        ("num_heads", 4),
        ("num_classes", 20),
    ],
)
def test_another_architecture_than_the_workdirs_is_refused_by_field(tmp_path, field, value):
    write_config(tmp_path, experiment())
    found = getattr(experiment().model, field)
    with pytest.raises(
        UserError,
        match=rf"{field} = {found!r}, but config\.model\.{field} is {value!r}: take another",
    ):
        check_architecture(experiment(**{f"model__{field}": value}).model, tmp_path)


def test_how_the_model_is_computed_may_change_and_so_may_the_rest_of_the_config(tmp_path):
    write_config(tmp_path, experiment())
    check_architecture(
        experiment(
            model__dtype="bfloat16",
            model__remat="full",
            model__scan_blocks=True,
            model__attention="xla",
            train__steps=9000,
            optimizer__lr=0.5,
        ).model,
        tmp_path,
    )


def test_a_workdir_without_a_config_or_with_one_older_than_a_field_is_of_any_architecture(tmp_path):
    check_architecture(experiment().model, tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"depth": 5}}')
    check_architecture(experiment().model, tmp_path)


def test_an_image_size_of_two_numbers_equals_itself_after_json(tmp_path):
    made = experiment()
    oblong = dataclasses.replace(made, model=dataclasses.replace(made.model, image_size=(8, 16)))
    write_config(tmp_path, oblong)
    check_architecture(oblong.model, tmp_path)
    assert resolve(config_of_run(tmp_path)) == oblong


@pytest.mark.parametrize("text", ["3", "[1]", '{"model": 3}', '{"model": {}, "diffusion": [1]}'])
def test_json_of_another_kind_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="can't be read as the config of a run"):
        saved_config(tmp_path)


def test_what_changed_since_the_run_began_is_listed_by_field(tmp_path):
    write_config(tmp_path, experiment())
    saved = saved_config(tmp_path)
    assert changes(to_save(experiment()), saved) == []
    changed = dataclasses.replace(experiment(train__steps=9), init_from="w.pth")
    assert changes(to_save(changed), saved) == [
        "config.init_from:  before, w.pth now",
        "config.train.steps: 3500 before, 9 now",
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "prediction",
            "v",
            r"prediction = 'noise', but config\.diffusion\.prediction is 'v': take another "
            r"--workdir",
        ),
        (
            "schedule",
            "stable_diffusion",
            r"schedule = 'vp_linear', but config\.diffusion\.schedule is 'stable_diffusion': take "
            r"another",
        ),
    ],
)
def test_weights_of_another_meaning_than_the_configs_are_refused_by_field(
    tmp_path, field, value, message
):
    write_config(tmp_path, experiment())
    other = experiment(**{f"diffusion__{field}": value})
    with pytest.raises(UserError, match=rf"^{tmp_path} holds a model with {message}"):
        check_meaning(other.diffusion, tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path} holds a model with {message}"):
        check_run(other.model, other.diffusion, tmp_path)


def test_an_empty_condition_is_known_or_not_whatever_share_learned_it(tmp_path):
    unguided = {"diffusion__p_uncond": 0.0, "sample__guidance_scale": 0.0}
    write_config(tmp_path, experiment())
    check_meaning(
        experiment(diffusion__p_uncond=0.15, diffusion__weighting="min_snr").diffusion, tmp_path
    )
    with pytest.raises(
        UserError,
        match=r"p_uncond = 0\.1, which knows an empty condition, but .* is 0\.0, expected a num",
    ):
        check_meaning(experiment(**unguided).diffusion, tmp_path)
    write_config(tmp_path, experiment(**unguided))
    with pytest.raises(
        UserError,
        match=r"p_uncond = 0\.0, which knows no empty condition, but .* is 0\.1, expected 0:",
    ):
        check_meaning(experiment().diffusion, tmp_path)


def test_a_config_older_than_a_field_was_one_of_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}, "diffusion": {"p_uncond": 0.1}}')
    check_meaning(experiment().diffusion, tmp_path)
    with pytest.raises(UserError, match="prediction = 'noise', but"):
        check_meaning(experiment(diffusion__prediction="x0").diffusion, tmp_path)
    check_meaning(experiment(diffusion__prediction="x0").diffusion, tmp_path / "nowhere")
