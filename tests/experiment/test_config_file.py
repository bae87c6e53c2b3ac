import ml_collections
import pytest

from uvit_jax.errors import UserError
from uvit_jax.experiment import config_file as module
from uvit_jax.experiment.config import Experiment, load_experiment, resolve, set_fields
from uvit_jax.experiment.config_file import read_config, split_name


def config_file(folder, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x = 1\ndef get_config(:\n    pass\n", "fails in line 2: SyntaxError: invalid syntax"),
        (
            "import nosuchmodule\n",
            "fails in line 1: ModuleNotFoundError: No module named 'nosuchmodule'",
        ),
        (
            "def get_config():\n    return undefined\n",
            "fails in line 2: NameError: name 'undefined' is not defined",
        ),
        ("def get_config():\n    open('/no/such')\n", "fails in line 2: FileNotFoundError: "),
        ("x = 1\n", r"has no get_config\(\), expected a function"),
        ("def get_config():\n    pass\n", "returns None, expected a ConfigDict as default_config"),
        ("def get_config():\n    return {'train': {}}\n", "returns a dict, expected a ConfigDict"),
    ],
    ids=["syntax", "import", "name", "file", "no function", "none", "dict"],
)
def test_a_fault_of_a_config_file_is_one_sentence_that_names_the_file(
    tmp_path, monkeypatch, text, fault
):
    path = config_file(tmp_path, text)
    with pytest.raises(UserError, match=rf"^config file {path}.* ?{fault}") as refused:
        read_config(path)
    assert "\n" not in str(refused.value)
    # By another name, as it is typed.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^config file mine\.py.* ?{fault}"):
        load_experiment("mine.py")


def test_what_is_no_config_file_is_named_and_a_runs_config_leads_to_its_workdir(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("it's")
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(
            UserError,
            match=rf"^{path} is in the workdir of a run, .*expected --workdir {tmp_path} in place",
        ):
            read_config(str(path))
    with pytest.raises(UserError, match=r"README\.md is not a config file, expected a Python file"):
        read_config(str(tmp_path / "README.md"))
    for absent in ("absent.py", "absent/config.json"):
        with pytest.raises(UserError, match=f"there is no config file .*{absent}"):
            read_config(str(tmp_path / absent))


def test_variants_are_asked_for_where_there_are_some_alone(tmp_path):
    needed = config_file(
        tmp_path,
        "import ml_collections\ndef get_config(size): return ml_collections.ConfigDict()\n",
    )
    assert read_config(f"{needed}:small") == ml_collections.ConfigDict()
    with pytest.raises(UserError, match=r"mine\.py needs a variant: --config .*mine\.py:VARIANT$"):
        read_config(needed)
    with pytest.raises(
        UserError,
        match=r"^configs/digits\.py has no variants, expected --config configs/digits\.py$",
    ):
        read_config("configs/digits.py:small")
    with pytest.raises(UserError, match="has no variant 'small', expected 'huge' or 'large'"):
        read_config("configs/imagenet256.py:small")


def test_a_config_written_for_version_0_1_is_read(tmp_path):
    text = "from uvit_jax.jobs.config import default_config as get_config\n"
    assert resolve(read_config(config_file(tmp_path, text))) == Experiment()


def test_a_section_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^config\.train is 3, expected a section"):
        resolve(ml_collections.ConfigDict({"train": 3}))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package with configs of its own, used in an empty folder."""
    packaged, here = tmp_path / "site-packages" / "uvit_jax" / "configs", tmp_path / "here"
    packaged.mkdir(parents=True)
    here.mkdir()
    for name in ("digits", "imagenet256"):
        text = (
            "import ml_collections\ndef get_config(size=''): return "
            "ml_collections.ConfigDict({'init_from': 'own'})\n"
        )
        (packaged / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "_PACKAGED", packaged)
    monkeypatch.chdir(here)
    return packaged


@pytest.mark.parametrize(
    "name", ["configs/digits.py", "./configs/digits.py", "configs/imagenet256.py:large"]
)
def test_the_installed_packages_configs_are_found_by_their_names_in_the_repository(
    installed, caplog, name
):
    caplog.set_level("INFO", "uvit_jax")
    module.LOG.addHandler(caplog.handler)
    try:
        assert read_config(name).init_from == "own"
    finally:
        module.LOG.removeHandler(caplog.handler)
    path = installed / split_name(name)[0].rpartition("/")[2]
    assert f"there is no configs/ here: taking {path}, which came with uvit-jax" in caplog.messages


@pytest.mark.parametrize(
    "name",
    [
        "nosuch/digits.py",
        "nosuch/digits.py:large",
        "nosuch/configs/digits.py",
        "../configs/digits.py",
        "/configs/digits.py",
        "configs/configs/digits.py",
        "digits.py",
        "digits",
        "digits:large",
        "configs/digits",
    ],
)
def test_no_other_name_stands_for_a_config_of_the_installed_package(installed, name):
    own = str(installed / "digits.py")
    with pytest.raises(
        UserError, match=r"^there is no config file .*digits.*; uvit-jax's own is (.*)$"
    ) as refused:
        read_config(name)
    assert str(refused.value).endswith(own)


def test_a_folder_configs_of_ones_own_stands_before_the_packages(installed):
    (installed.parents[2] / "here" / "configs").mkdir()
    with pytest.raises(
        UserError, match=r"^there is no config file configs/digits\.py, .*; uvit-jax's own is /"
    ):
        read_config("configs/digits.py")


def test_a_config_that_nobody_has_is_refused_without_another_one(installed):
    with pytest.raises(
        UserError,
        match=r"^there is no config file configs/nosuch\.py, expected a path like [\w/.]*$",
    ):
        read_config("configs/nosuch.py")


def test_a_variant_stands_behind_the_last_letters_of_a_python_file():
    assert split_name("configs/x.py") == ("configs/x.py", "")
    assert split_name("configs/x.py:large") == ("configs/x.py", "large")
    assert split_name("/data/a:b/x.py:large") == ("/data/a:b/x.py", "large")
    assert split_name("gs://bucket/x.py") == ("gs://bucket/x.py", "")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.dept", "config.model has no field 'dept', did you mean 'depth'"),
        ("modle.depth", "config has no field 'modle', did you mean 'model'"),
        (
            "optimizer.betas[0]",
            r"config.optimizer has no field 'betas\[0\]', expected one of betas, ",
        ),
        (
            "train.steps.x",
            "config.train.steps.x is not a field, expected --config.train.steps=VALUE",
        ),
        (
            "train",
            r"config.train is a section, expected a field of it as --config\.train\.FIELD=VALUE",
        ),
    ],
)
def test_a_flag_for_no_field_is_told_the_nearest_one(field, message):
    with pytest.raises(UserError, match=message):
        load_experiment("configs/digits.py", {field: "3"})


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("train.steps", "1e3", 1000),
        ("train.steps", "1_000", 1000),
        ("train.steps", "1000.0", 1000),
        ("train.steps", "0x10", 16),
        ("train.steps", "007", 7),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "1", 1.0),
        ("data.flip", "true", True),
        ("data.flip", "False", False),
        ("data.flip", "1", True),
        ("data.flip", None, True),
        ("optimizer.betas", "0.9,0.99", (0.9, 0.99)),
        ("optimizer.betas", "(0.9, 0.99)", (0.9, 0.99)),
        ("optimizer.betas", "[0.9, 0.99,]", (0.9, 0.99)),
        ("model.image_size", "8,16", (8, 16)),
        ("model.image_size", "(8, 16)", (8, 16)),
        ("model.image_size", "16", 16),
        ("autoencoder.scale", "None", None),
        ("autoencoder.scale", "0.5", 0.5),
        ("sample.labels", "0,3,7", "0,3,7"),
        ("init_from", "1e3", "1e3"),
    ],
)
def test_a_text_is_read_by_the_type_of_its_field(field, text, value):
    made = load_experiment("configs/digits.py", {field: text})
    section, _, name = field.rpartition(".")
    found = getattr(getattr(made, section) if section else made, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("train.steps", "1.5", "config.train.steps is '1.5', expected int$"),
        ("train.steps", "-0.0", "config.train.steps is 0, expected at least 1"),
        ("train.steps", "inf", "config.train.steps is 'inf', expected int"),
        ("train.steps", "nan", "config.train.steps is 'nan', expected int"),
        ("train.steps", "", "config.train.steps is '', expected int"),
        ("train.steps", "true", "config.train.steps is 'true', expected int"),
        (
            "train.steps",
            None,
            r"config.train.steps has no value, expected --config.train.steps=VALUE \(int\)",
        ),
        ("optimizer.lr", "1,5", "config.optimizer.lr is '1,5', expected float"),
        ("data.flip", "maybe", "config.data.flip is 'maybe', expected bool"),
        ("optimizer.betas", "0.9", "config.optimizer.betas is '0.9', expected two numbers"),
        ("optimizer.betas", "0.9,x", "config.optimizer.betas is '0.9,x', expected two numbers"),
        (
            "model.image_size",
            "8,16,3",
            "config.model.image_size is '8,16,3', expected int or two numbers",
        ),
        ("autoencoder.scale", "x", "config.autoencoder.scale is 'x', expected float or None"),
    ],
)
def test_a_text_that_is_no_value_of_its_field_is_refused(field, text, message):
    with pytest.raises(UserError, match=f"^{message}"):
        load_experiment("configs/digits.py", {field: text})


def test_a_field_is_set_in_a_locked_config_that_lacks_its_section():
    config = ml_collections.ConfigDict({"train": {"steps": 3}}).lock()
    set_fields(config, {"train.seed": "7", "mesh.data": "2"})
    assert config.to_dict() == {"train": {"steps": 3, "seed": 7}, "mesh": {"data": 2}}
