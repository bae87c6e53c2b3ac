import ml_collections
import pytest

from uvit_jax.errors import UserError
from uvit_jax.jobs.config import load_experiment, resolve
from uvit_jax.jobs.config_file import check_flags, read_config


def config_file(folder, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x = 1\ndef get_config(:\n    pass\n", "fails in line 2: SyntaxError: invalid syntax"),
        ("import nosuchmodule\n", "fails in line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config():\n    return undefined\n", "fails in line 2: NameError: name 'undefined' is not defined"),
        ("def get_config():\n    open('/no/such')\n", "fails in line 2: FileNotFoundError: "),
        ("x = 1\n", r"has no get_config\(\), expected a function"),
        ("def get_config():\n    pass\n", "returns None, expected a ConfigDict as default_config"),
        ("def get_config():\n    return {'train': {}}\n", "returns a dict, expected a ConfigDict"),
    ],
    ids=["syntax", "import", "name", "file", "no function", "none", "dict"],
)
def test_a_fault_of_a_config_file_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, text, fault):
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
        with pytest.raises(UserError, match=rf"^{path} is what a run left, .*expected --workdir {tmp_path} in place"):
            read_config(str(path))
    with pytest.raises(UserError, match=r"README\.md is no config file, expected one of Python"):
        read_config(str(tmp_path / "README.md"))
    for absent in ("absent.py", "absent/config.json"):
        with pytest.raises(UserError, match=f"there is no config file .*{absent}"):
            read_config(str(tmp_path / absent))


def test_variants_are_asked_for_where_there_are_some_alone(tmp_path):
    needed = config_file(tmp_path, "import ml_collections\ndef get_config(size): return ml_collections.ConfigDict()\n")
    assert read_config(f"{needed}:small") == ml_collections.ConfigDict()
    with pytest.raises(UserError, match=r"has variants only, expected --config .*mine\.py:VARIANT"):
        read_config(needed)
    with pytest.raises(UserError, match=r"^that config has no variants, expected --config configs/digits\.py alone"):
        read_config("configs/digits.py:small")
    with pytest.raises(UserError, match="has no variant 'small', expected 'huge' or 'large'"):
        read_config("configs/imagenet256.py:small")


def test_a_section_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^config\.train is 3, expected a section"):
        resolve(ml_collections.ConfigDict({"train": 3}))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.dept", "config.model has no field 'dept', did you mean 'depth'"),
        ("modle.depth", "config has no field 'modle', did you mean 'model'"),
        ("optimizer.betas[0]", r"config.optimizer has no field 'betas\[0\]', expected one of betas, "),
        ("train.steps.x", "config.train.steps.x is no field, expected --config.train.steps=3500"),
    ],
)
def test_a_flag_for_no_field_is_told_the_nearest_one(field, message):
    config = read_config("configs/digits.py")
    check_flags(config, ["model.depth", "autoencoder.scale", "train"])
    with pytest.raises(UserError, match=message):
        check_flags(config, [field])
