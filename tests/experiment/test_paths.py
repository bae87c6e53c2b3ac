"""Paths in configs and flags: a URL is not taken for a folder, and ~ is a person's home."""

import pytest

from tests.jobs.runs import tiny_experiment
from uvit_jax import main
from uvit_jax.errors import UserError
from uvit_jax.experiment.paths import PATH_FIELDS, local_path
from uvit_jax.experiment.saved_config import save_config, to_save

TEXTS = "sample.prompts"


def with_path(field: str, value: str):
    fields = {field.replace(".", "__"): value}
    return tiny_experiment(
        **fields,
        **(
            {"model__context_dim": 8, "model__context_length": 4, "model__num_classes": 0}
            if field == TEXTS
            else {}
        ),
    )


@pytest.mark.parametrize("field", PATH_FIELDS)
@pytest.mark.parametrize("url", ["gs://bucket/x.txt", "s3://bucket/x.txt", "hf://datasets/x.txt"])
def test_a_url_is_refused_in_every_field_that_is_a_path(field, url):
    with pytest.raises(
        UserError, match=rf"^config\.{field} is '{url}', which is a URL, expected a path: mount"
    ):
        with_path(field, url)


@pytest.mark.parametrize(
    "value", ["az://c/x", "https://host/x.npz", "file:///tmp/x", "gs:/bucket", "abfss://c@a/x"]
)
def test_any_scheme_is_that_of_a_url(value):
    with pytest.raises(UserError, match=r"^--workdir is '.*', which is a URL"):
        local_path("--workdir", value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "runs/x",
        "/a b/c",
        "tfds:voc/2007",
        "hf:org/name:config",
        "wds:/data/train-{000..009}.tar",
        "random:3",
        "org/model",
        "digits",
        "größe",
        "./~x",
        "a~b",
    ],
)
def test_other_names_stay_as_they_are(value):
    assert local_path("config.data.source", value) == value


@pytest.mark.parametrize("field", PATH_FIELDS)
def test_a_home_is_expanded_in_every_field_that_is_a_path(field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    experiment = with_path(field, "~/x.txt")
    section, _, name = field.rpartition(".")
    assert (
        getattr(getattr(experiment, section) if section else experiment, name) == "/home/me/x.txt"
    )


def test_prompts_that_are_no_file_may_speak_of_urls_and_tildes():
    assert (
        with_path(TEXTS, "~ a page of http://x; a cat").sample.prompts
        == "~ a page of http://x; a cat"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("~nobody-of-that-name/x", r"there is no user of that name"),
        ("  ", r"is '  ', expected a path, or nothing"),
        ("runs/\udcff", r"is 'runs/\\udcff', which is not UTF-8, expected a path in UTF-8"),
    ],
)
def test_what_no_path_can_be_is_told(value, message):
    with pytest.raises(UserError, match=message) as told:
        local_path("--workdir", value)
    str(told.value).encode()  # can be printed


def test_the_workdir_of_an_earlier_run_is_not_a_url_either():
    with pytest.raises(UserError, match=r"^--workdir is 'gs://b/run', which is a URL"):
        main.open_experiment("sample", "", "gs://b/run", {})


def test_the_workdir_of_an_earlier_run_may_be_in_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_config(to_save(tiny_experiment()), tmp_path)
    assert main.open_experiment("sample", "", "~", {})[1] == tmp_path


def test_every_field_that_names_files_is_checked():
    """A field whose documentation speaks of a folder, a file or a path is a path; a new one is to
    be listed.
    """
    import dataclasses
    import re
    import typing

    from uvit_jax.experiment.config import Experiment

    own = {"sample.weights", "prepare.on_error"}
    own |= {"evaluate.save", "evaluate.make_reference", "evaluate.inception_sha256"}
    for section, kind in typing.get_type_hints(Experiment).items():
        if not dataclasses.is_dataclass(kind):
            continue
        notes = re.findall(r"^      (\w+): (.*(?:\n        .*)*)", kind.__doc__ or "", re.MULTILINE)
        for name, note in notes:
            field = f"{section}.{name}"
            default = next((f.default for f in dataclasses.fields(kind) if f.name == name), None)
            if (
                isinstance(default, str)
                and re.search(r"\b(folder|file|path)\b", note)
                and field not in own
            ):
                assert field in PATH_FIELDS or field in ("sample.format", "prepare.split"), field
