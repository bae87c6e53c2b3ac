import dataclasses
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from configs import digits
from uvit_jax.data.sources import ArraySource
from uvit_jax.errors import UserError
from uvit_jax.jobs import saved_config as saved_config_file
from uvit_jax.jobs.config import (
    Experiment,
    check_architecture,
    check_mesh,
    check_source,
    default_config,
    open_workdir,
    resolve,
    sample_labels,
    saved_config,
)

# Fields of a config that drops no labels, and so can't be guided, with ten labels and with none.
KEEPING = {"diffusion__p_uncond": 0.0, "sample__guidance_scale": 0.0, "model__num_classes": 10}
UNCONDITIONAL = KEEPING | {"model__num_classes": 0}


def experiment(**changes) -> Experiment:
    """The digits config with some fields changed, as `model__depth=3`."""
    config = digits.get_config()
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config)


def source(shape=(8, 8, 1), classes=10) -> ArraySource:
    names = [str(i) for i in range(classes)]
    return ArraySource("toy", np.zeros((2, *shape), np.float32), np.zeros(2, np.int32), names)


def write_config(workdir: pathlib.Path, made: Experiment) -> None:
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(made)))


# --- From a config to an experiment.


def test_the_default_config_holds_every_field_and_resolves_to_the_defaults():
    config = default_config()
    for section in dataclasses.fields(Experiment):
        assert set(config[section.name]) == {field.name for field in dataclasses.fields(section.type)}
    assert resolve(config) == Experiment()


def test_a_resolved_config_says_what_was_set_and_survives_a_second_round():
    made = experiment(optimizer__betas=(0.5, 0.25), mesh__fsdp=2)
    assert (made.model.depth, made.optimizer.betas, made.mesh.fsdp, made.ema.rate) == (5, (0.5, 0.25), 2, 0.998)
    assert resolve(ml_collections.ConfigDict(dataclasses.asdict(made))) == made


def test_sections_and_fields_that_are_left_out_have_their_defaults():
    made = resolve(ml_collections.ConfigDict({"train": {"steps": 7}}))
    assert made == dataclasses.replace(Experiment(), train=dataclasses.replace(Experiment().train, steps=7))


def test_an_unknown_section_is_named_with_the_nearest_one():
    config = default_config()
    config.modle = {"depth": 3}
    with pytest.raises(UserError, match=r"^config has no field 'modle', did you mean 'model'"):
        resolve(config)


@pytest.mark.parametrize(
    ("section", "field", "hint"), [("model", "embed_dims", "embed_dim"), ("train", "batchsize", "batch_size")]
)
def test_an_unknown_field_is_named_with_its_section_and_the_nearest_one(section, field, hint):
    config = default_config()
    config[section][field] = 3
    with pytest.raises(UserError, match=rf"^config\.{section} has no field '{field}', did you mean '{hint}'"):
        resolve(config)


def test_an_unknown_field_like_no_other_is_named_with_those_there_are():
    config = default_config()
    config.mesh.zzz = 3
    with pytest.raises(UserError, match=r"^config\.mesh has no field 'zzz'.*data.*fsdp.*tensor"):
        resolve(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model__depth", 4, "is 4, expected an odd number"),
        ("model__skip", "concatt", "is 'concatt', .*did you mean 'concat'"),
        ("model__image_size", 9, "is 9x9, expected positive multiples of patch_size = 4"),
        ("diffusion__schedule", "vp_liner", "is 'vp_liner', .*did you mean 'vp_linear'"),
        ("diffusion__prediction", "epsilon", "is 'epsilon', expected one of 'noise'"),
        ("diffusion__weighting", "snr", "is 'snr', expected one of 'none'"),
        ("diffusion__p_uncond", 1.0, "is 1.0, expected a number from 0 to below 1"),
        ("diffusion__p_uncond", -0.1, "is -0.1, expected a number from 0 to below 1"),
        ("data__source", "digit", "is 'digit', .*did you mean 'digits'"),
        ("data__prefetch", 0, "is 0, expected at least 1"),
        ("train__steps", 0, "is 0, expected at least 1"),
        ("train__batch_size", -4, "is -4, expected at least 1"),
        ("train__log_every", 0, "is 0, expected at least 1"),
        ("train__num_images", 0, "is 0, expected at least 1"),
        ("train__keep_last", 0, "is 0, expected at least 1"),
        ("train__save_every", -1, "is -1, expected at least 0"),
        ("train__image_every", -1, "is -1, expected at least 0"),
        ("train__keep_every", -1, "is -1, expected at least 0"),
        ("train__seed", 2**32, "is 4294967296, expected 0 to"),
        ("train__seed", -1, "is -1, expected 0 to"),
        ("optimizer__decay", "linear", "is 'linear', expected 'none' or 'cosine'"),
        ("optimizer__betas", (0.9, 1.0), r"is \(0.9, 1.0\), expected two numbers from 0 to below 1"),
        ("optimizer__lr", -1.0, "is -1.0, expected 0 or more"),
        ("ema__rate", 1.0, "is 1.0, expected a number from 0 to below 1"),
        ("mesh__tensor", 0, "is 0, expected a positive number, or -1"),
        ("sample__num_samples", 0, "is 0, expected at least 1"),
        ("sample__batch_size", 0, "is 0, expected at least 1"),
        ("sample__seed", -1, "is -1, expected 0 to"),
        ("sample__weights", "emma", "is 'emma', .*did you mean 'ema'"),
        ("sample__format", "jpg", "is 'jpg', expected one of 'png', 'npz'"),
        ("sample__solver", "dpm_solver++", "is 'dpm_solver\\+\\+', .*"),
        ("sample__steps", 0, "is 0, "),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_whole_name_of_its_field(field, value, message):
    with pytest.raises(UserError, match=rf"^config\.{field.replace('__', '[.]')} {message}"):
        experiment(**{field: value})


def test_dropping_labels_needs_a_condition_to_drop():
    with pytest.raises(UserError, match=r"^config\.diffusion\.p_uncond is 0.1, expected 0 for an unconditional model"):
        experiment(model__num_classes=0)


def test_guidance_needs_an_empty_condition_to_guide_away_from():
    with pytest.raises(UserError, match=r"^config\.sample\.guidance_scale is 2.0, expected 0: .*p_uncond = 0"):
        experiment(**KEEPING | {"sample__guidance_scale": 2.0})
    assert experiment(sample__guidance_scale=2.0).sample.guidance_scale == 2.0


def test_the_empty_label_is_the_last_row_and_only_where_labels_are_dropped():
    dropping, keeping = experiment(), experiment(**KEEPING)
    assert (dropping.null_label, dropping.num_real_classes) == (10, 10)
    assert (keeping.null_label, keeping.num_real_classes) == (None, 10)
    unconditional = experiment(**UNCONDITIONAL)
    assert (unconditional.null_label, unconditional.num_real_classes) == (None, 0)


def test_the_sampler_has_the_sample_sections_own_fields():
    made = experiment(sample__steps=17, sample__spacing="logsnr", sample__order=3)
    sampler = made.sample.sampler()
    assert (sampler.steps, sampler.spacing, sampler.order) == (17, "logsnr", 3)
    assert not hasattr(sampler, "num_samples")


# --- What must fit together.


def test_a_model_that_fits_the_data_passes():
    check_source(experiment(), source())
    check_source(experiment(**KEEPING), source())
    check_source(experiment(**UNCONDITIONAL), source())


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"model__image_size": 16}, source(), r"shape \(16, 16, 1\), but 'toy' has \(8, 8, 1\)"),
        ({}, source(shape=(8, 8, 3)), r"shape \(8, 8, 1\), but 'toy' has \(8, 8, 3\)"),
        ({"model__num_classes": 10}, source(), "num_classes is 10, but 'toy' has 10 classes, and one more"),
        (KEEPING | {"model__num_classes": 11}, source(), "num_classes is 11, but 'toy' has 10 classes$"),
        (
            {"model__num_classes": 0, "model__context_dim": 8, "model__context_length": 2},
            source(),
            r"^config\.model\.context_dim is 8, but 'toy' has no text",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(changes, data, message):
    with pytest.raises(UserError, match=message):
        check_source(experiment(**changes), data)


def test_batches_and_heads_that_split_over_the_mesh_pass():
    check_mesh(experiment(train__batch_size=24, sample__batch_size=16), (2, 4, 8))


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"train__batch_size": 20}, (2, 4, 1), r"config\.train\.batch_size is 20, .*mesh\.data \* mesh\.fsdp = 8"),
        ({"sample__batch_size": 20}, (8, 1, 1), r"config\.sample\.batch_size is 20, .*mesh\.data \* mesh\.fsdp = 8"),
        ({}, (1, 1, 3), r"config\.model\.num_heads is 8, expected a multiple of mesh\.tensor = 3"),
    ],
)
def test_batches_and_heads_that_do_not_split_over_the_mesh_are_refused(changes, sizes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_mesh(experiment(**changes), sizes)


# --- Labels to sample.


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("all", 12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]),
        (" all ", 2, [0, 1]),
        ("0,3,7", 5, [0, 3, 7, 0, 3]),
        ("9", 3, [9, 9, 9]),
        (" 4 , 2 ", 2, [4, 2]),
    ],
)
def test_labels_are_the_classes_asked_for_in_turn(text, count, expected):
    labels = sample_labels(experiment(sample__labels=text), count)
    assert labels.dtype == np.int32
    assert labels.tolist() == expected


@pytest.mark.parametrize("text", ["cat", "0;3", "1.5", "", "0,,1", "0-9"])
def test_what_is_no_list_of_classes_is_refused(text):
    with pytest.raises(UserError, match=r"^config\.sample\.labels is .*, expected 'all' or classes as in '0,3,7'"):
        sample_labels(experiment(sample__labels=text), 3)


@pytest.mark.parametrize(("text", "label"), [("0,10", 10), ("-1", -1), ("99999999999999999999", 10**20 - 1)])
def test_a_class_outside_the_table_and_the_empty_label_are_refused(text, label):
    with pytest.raises(UserError, match=rf"^config\.sample\.labels: label {label} is outside .* 0 to 9"):
        sample_labels(experiment(sample__labels=text), 3)


def test_an_unconditional_model_has_no_labels_to_sample():
    for text in ("all", ""):
        assert sample_labels(experiment(**UNCONDITIONAL, sample__labels=text), 3) is None
    with pytest.raises(UserError, match=r"^config\.sample\.labels is '0,3', expected 'all' for a model without labels"):
        sample_labels(experiment(**UNCONDITIONAL, sample__labels="0,3"), 3)


# --- The workdir.


def test_a_workdir_is_made_with_its_parents_and_left_as_it_was(tmp_path):
    workdir = tmp_path / "a" / "b"
    open_workdir(workdir)
    (workdir / "kept").write_text("mine")
    open_workdir(workdir)
    assert [path.name for path in workdir.iterdir()] == ["kept"]


def test_a_workdir_that_cannot_be_made_is_refused_with_its_path(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(UserError, match=rf"^workdir {workdir} can't be written to \(.+\), expected a folder"):
            open_workdir(workdir)


def test_a_run_is_described_by_its_saved_config(tmp_path):
    assert saved_config(tmp_path) is None
    made = experiment(train__seed=5)
    write_config(tmp_path, made)
    assert saved_config(tmp_path)["train"]["seed"] == 5
    assert resolve(saved_config_file.get_config(str(tmp_path))) == made


def test_a_saved_config_that_is_no_json_or_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} holds no config.json"):
        saved_config_file.get_config(str(tmp_path))
    for junk in (b"{not json", b"\xff\xfe\x00", b""):
        (tmp_path / "config.json").write_bytes(junk)
        with pytest.raises(UserError, match=f"^{tmp_path}/config.json can't be read as the config of a run"):
            saved_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 7), ("embed_dim", 64), ("skip", "add"), ("time", "adaln"), ("num_heads", 4), ("num_classes", 20)],
)
def test_another_architecture_than_the_workdirs_is_refused_by_field(tmp_path, field, value):
    write_config(tmp_path, experiment())
    found = getattr(experiment().model, field)
    with pytest.raises(UserError, match=rf"{field} = {found!r}, but config\.model\.{field} is {value!r}: take another"):
        check_architecture(experiment(**{f"model__{field}": value}), tmp_path)


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
        ),
        tmp_path,
    )


def test_a_workdir_without_a_config_or_with_one_older_than_a_field_is_of_any_architecture(tmp_path):
    check_architecture(experiment(), tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"depth": 5}}')
    check_architecture(experiment(), tmp_path)


def test_an_image_size_of_two_numbers_equals_itself_after_json(tmp_path):
    made = experiment()
    oblong = dataclasses.replace(made, model=dataclasses.replace(made.model, image_size=(8, 16)))
    write_config(tmp_path, oblong)
    check_architecture(oblong, tmp_path)
    assert resolve(saved_config_file.get_config(str(tmp_path))) == oblong


@pytest.mark.parametrize("text", ["3", "[1]", '{"model": 3}'])
def test_json_of_another_kind_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="can't be read as the config of a run"):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.steps", "many", "config.train.steps is 'many', expected int"),
        ("train.steps", 1.5, "config.train.steps is 1.5, expected int"),
        ("train.steps", True, "config.train.steps is True, expected int"),
        ("optimizer.betas", (0.9, "x"), "config.optimizer.betas is \\(0.9, 'x'\\), expected tuple"),
        ("model.image_size", (8, 8, 8), "config.model.image_size is \\(8, 8, 8\\), expected int"),
        ("sample.guidance_scale", float("nan"), "config.sample.guidance_scale is nan, expected a finite number"),
        ("model.mlp_ratio", float("nan"), "config.model.mlp_ratio is nan, expected a positive number"),
    ],
)
def test_a_value_of_another_type_is_named(field, value, message):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        resolve(config)


def test_images_need_not_be_square_nor_numbers_floats():
    config = default_config()
    config.model.image_size = (8, 16)
    config.model.mlp_ratio = 2
    model = resolve(config).model
    assert model.sample_shape == (8, 16, 3)
    assert model.mlp_ratio == 2


def test_one_class_cannot_be_the_empty_label_alone():
    config = default_config()
    config.update_from_flattened_dict({"model.num_classes": 1, "diffusion.p_uncond": 0.1})
    with pytest.raises(UserError, match="num_classes is 1, expected at least 2"):
        resolve(config)
