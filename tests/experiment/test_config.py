import dataclasses

import ml_collections
import pytest

from tests.jobs.digits_config import KEEPING, UNCONDITIONAL, experiment
from uvit_jax.errors import UserError
from uvit_jax.experiment import config_file
from uvit_jax.experiment.config import (
    Experiment,
    default_config,
    field_names,
    resolve,
    set_fields,
)


def test_the_default_config_holds_every_field_and_resolves_to_the_defaults():
    config = default_config()
    for section in dataclasses.fields(Experiment):
        if section.name != "init_from":
            assert set(config[section.name]) == {
                field.name for field in dataclasses.fields(section.type)
            }
    assert resolve(config) == Experiment()


def test_a_resolved_config_says_what_was_set_and_survives_a_second_round():
    made = experiment(optimizer__betas=(0.5, 0.25), mesh__fsdp=2)
    assert (made.model.depth, made.optimizer.betas, made.mesh.fsdp, made.ema.rate) == (
        5,
        (0.5, 0.25),
        2,
        0.998,
    )
    assert resolve(ml_collections.ConfigDict(dataclasses.asdict(made))) == made


def test_sections_and_fields_that_are_left_out_have_their_defaults():
    made = resolve(ml_collections.ConfigDict({"train": {"steps": 7}}))
    assert made == dataclasses.replace(
        Experiment(), train=dataclasses.replace(Experiment().train, steps=7)
    )


def test_an_unknown_section_is_named_with_the_nearest_one():
    config = default_config()
    config.modle = {"depth": 3}
    with pytest.raises(UserError, match=r"^config has no field 'modle', did you mean 'model'"):
        resolve(config)


@pytest.mark.parametrize(
    ("section", "field", "hint"),
    [("model", "embed_dims", "embed_dim"), ("train", "batchsize", "batch_size")],
)
def test_an_unknown_field_is_named_with_its_section_and_the_nearest_one(section, field, hint):
    config = default_config()
    config[section][field] = 3
    with pytest.raises(
        UserError, match=rf"^config\.{section} has no field '{field}', did you mean '{hint}'"
    ):
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
        ("data__source", "", "is empty, expected 'digits' or the folder"),
        ("data__workers", -1, "is -1, expected at least 0"),
        ("autoencoder__scale", 0.0, "is 0.0, expected a positive number, or None"),
        ("autoencoder__dtype", "float64", "is 'float64', expected one of 'float32', 'bfloat16'$"),
        ("autoencoder__dtype", "fp8", "is 'fp8', expected one of 'float32', 'bfloat16'"),
        ("text_encoder__dtype", "fp8", "is 'fp8', expected one of 'float32', 'bfloat16'"),
        ("evaluate__dtype", "fp8", "is 'fp8', expected one of 'float32', 'bfloat16'"),
        ("text_encoder__batch_size", 0, "is 0, expected at least 1"),
        ("prepare__crop", "amd", "is 'amd', .*did you mean 'adm'"),
        ("prepare__dtype", "uint8", "is 'uint8', expected one of 'float16'"),
        ("prepare__on_error", "ignore", "is 'ignore', expected one of 'stop', 'skip'"),
        ("prepare__images_per_shard", 0, "is 0, expected at least 1"),
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
        (
            "optimizer__betas",
            (0.9, 1.0),
            r"is \(0.9, 1.0\), expected two numbers from 0 to below 1",
        ),
        ("optimizer__lr", -1.0, "is -1.0, expected 0 or more"),
        ("optimizer__eps", -1.0, "is -1.0, expected 0 or more"),
        ("optimizer__lr", float("nan"), "is nan, expected 0 or more, and finite"),
        ("optimizer__weight_decay", float("inf"), "is inf, expected 0 or more, and finite"),
        ("optimizer__grad_clip", float("nan"), "is nan, expected 0 or more, and finite"),
        ("ema__rate", 1.0, "is 1.0, expected a number from 0 to below 1"),
        ("mesh__tensor", 0, "is 0, expected a positive number, or -1"),
        (
            "sample__guidance",
            "autoguidance",
            r"is 'autoguidance', expected 'classifier_free': .*\(weak_network=",
        ),
        ("sample__num_samples", 0, "is 0, expected at least 1"),
        ("sample__batch_size", 0, "is 0, expected at least 1"),
        ("sample__seed", -1, "is -1, expected 0 to"),
        ("sample__step", -7, "is -7, expected that of a checkpoint, or -1 for the newest"),
        ("sample__weights", "emma", "is 'emma', .*did you mean 'ema'"),
        ("sample__format", "jpg", "is 'jpg', expected one of 'png', 'npz'$"),
        ("sample__solver", "dpm_solver++", "is 'dpm_solver\\+\\+', .*"),
        ("sample__steps", 0, "is 0, "),
        ("sample__atol", -1.0, "is -1.0, expected 0 or more"),
        ("sample__max_evaluations", 0, "is 0, expected at least 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_whole_name_of_its_field(field, value, message):
    with pytest.raises(UserError, match=rf"^config\.{field.replace('__', '[.]')} {message}"):
        experiment(**{field: value})


def test_dropping_labels_needs_a_condition_to_drop():
    with pytest.raises(
        UserError,
        match=r"^config\.diffusion\.p_uncond is 0.1, expected 0 for an unconditional model",
    ):
        experiment(model__num_classes=0)


def test_guidance_needs_an_empty_condition_to_guide_away_from():
    with pytest.raises(
        UserError, match=r"^config\.sample\.guidance_scale is 2.0, expected 0: .*p_uncond = 0"
    ):
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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.steps", "many", "config.train.steps is 'many', expected int"),
        ("train.steps", 1.5, "config.train.steps is 1.5, expected int"),
        ("train.steps", True, "config.train.steps is True, expected int"),
        (
            "optimizer.betas",
            (0.9, "x"),
            "config.optimizer.betas is \\(0.9, 'x'\\), expected two numbers",
        ),
        ("optimizer.betas", (0.9,), "config.optimizer.betas is \\(0.9,\\), expected two numbers"),
        (
            "model.image_size",
            (8, 8, 8),
            "config.model.image_size is \\(8, 8, 8\\), expected int or two numbers",
        ),
        (
            "sample.guidance_scale",
            float("nan"),
            "config.sample.guidance_scale is nan, expected a finite number",
        ),
        (
            "model.mlp_ratio",
            float("nan"),
            "config.model.mlp_ratio is nan, expected a positive number",
        ),
    ],
)
def test_a_value_of_another_type_is_named(field, value, message):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        resolve(config)


def test_a_whole_number_may_be_written_as_a_float_and_the_other_way_round():
    fields = {
        "train": {"steps": 1e3},
        "model": {"image_size": (16.0, 8)},
        "optimizer": {"lr": 1, "betas": (0, 0.5)},
    }
    made = resolve(ml_collections.ConfigDict(fields))
    assert repr((made.train.steps, made.model.image_size)) == "(1000, (16, 8))"
    assert repr((made.optimizer.lr, made.optimizer.betas)) == "(1.0, (0.0, 0.5))"


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


def test_weights_to_start_from_are_a_path_and_a_scale_is_a_number_or_none():
    config = default_config()
    assert config.autoencoder.scale is None
    config.update_from_flattened_dict({"init_from": "w.pth", "autoencoder.scale": 1})
    made = resolve(config)
    assert (made.init_from, made.autoencoder.scale) == ("w.pth", 1)
    config.init_from = 3
    with pytest.raises(UserError, match=r"^config\.init_from is 3, expected str"):
        resolve(config)


@pytest.mark.parametrize(
    ("text", "expected"), [("8", 8), ("8,16", (8, 16)), ("(8, 16)", (8, 16)), ("[8, 16]", (8, 16))]
)
@pytest.mark.parametrize("section", ["model", "prepare"])
def test_a_flag_takes_one_side_or_height_and_width(section, text, expected):
    config = default_config()
    set_fields(config, {f"{section}.image_size": text})
    assert getattr(resolve(config), section).image_size == expected


@pytest.mark.parametrize("value", ["8x16", (8,), (8, 16, 3), (8.5, 16), 8.5, True, None])
def test_sides_of_another_kind_are_refused(value):
    with pytest.raises(
        UserError, match=r"^config\.prepare\.image_size is .*, expected int or two numbers$"
    ):
        experiment(prepare__image_size=value)


@pytest.mark.parametrize("value", [-1, (0, 8), (8, -8)])
def test_sides_below_one_are_refused(value):
    with pytest.raises(
        UserError, match=r"^config\.prepare\.image_size is .*, expected at least 1, or 0 for what"
    ):
        experiment(prepare__image_size=value)


def test_a_crop_of_squares_is_refused_for_other_sides():
    with pytest.raises(
        UserError,
        match=r"^config\.prepare\.crop is 'celeba', which makes squares, but image_size is",
    ):
        experiment(prepare__image_size=(8, 16), prepare__crop="celeba")


def test_a_renamed_field_names_its_successor(monkeypatch):
    monkeypatch.setitem(config_file.RENAMED, "train.lr", "optimizer.lr")
    monkeypatch.setitem(config_file.RENAMED, "optim", "optimizer")
    for name, sentence in {
        "train.lr": "config.train.lr is now config.optimizer.lr",
        "optim.lr": "config.optim is now config.optimizer",
    }.items():
        with pytest.raises(UserError) as refused:
            set_fields(default_config(), {name: "1"})
        assert str(refused.value) == sentence
    config = default_config()
    config.train.lr = 1e-3
    with pytest.raises(UserError, match=r"^config\.train\.lr is now config\.optimizer\.lr$"):
        resolve(config)


def test_renamed_fields_lead_to_fields_that_are_there():
    known = {*field_names(), *(name.partition(".")[0] for name in field_names())}
    assert set(config_file.RENAMED.values()) <= known
    assert not set(config_file.RENAMED) & known
