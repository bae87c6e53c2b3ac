"""The folder of a report: no other files are overwritten, and its samples are of one evaluation."""

import json

import pytest

from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation.report_folder import claim_folder
from uvit_jax.jobs.sampling.sample_folder import Request, png_name, read_request

PLAN = {"samples": {"count": 3, "weights": {"step": 8}}, "metrics": ["fid"]}


def claim(out, save: str = "", plan=PLAN) -> None:
    """Claims the folder as an evaluation does before it draws."""
    claim_folder(out, plan, save, "config.evaluate.out")


@pytest.mark.parametrize(
    ("save", "name"),
    [
        ("", "samples.json"),
        ("", "grid.png"),
        ("npz", "samples.npz"),
        ("png", "samples/holiday.jpg"),
    ],
)
def test_files_of_something_else_are_not_written_over(tmp_path, save, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=rf"^config\.evaluate\.out {tmp_path}\S* holds '{name.split('/')[-1]}' "
    ):
        claim(tmp_path, save)
    assert not (tmp_path / ".evaluation").exists()


def test_a_report_that_was_deleted_is_made_again_over_its_own_files(tmp_path):
    for name in ("evaluation.txt", "grid.png", "samples.npz"):
        (tmp_path / name).touch()
    claim(tmp_path, "npz")
    assert json.loads((tmp_path / ".evaluation" / "plan.json").read_text()) == PLAN


def test_saved_samples_are_those_of_one_evaluation(tmp_path):
    for _ in range(2):  # the second goes on
        claim(tmp_path, "png")
    request = read_request(tmp_path / "samples")
    assert request == Request("png", 3, {"weights": {"step": 8}})
    (tmp_path / "samples" / png_name(0)).touch()
    other = PLAN | {"samples": {"count": 3, "weights": {"step": 9}}}
    with pytest.raises(
        UserError,
        match=r"holds half of another evaluation \(samples weights step = 8 there, 9 now\)",
    ):
        claim(tmp_path, "png", other)
    (tmp_path / ".evaluation" / "plan.json").unlink()
    with pytest.raises(
        UserError,
        match=r"/samples holds samples of another request \(weights step = 8 there, 9 now\)",
    ):
        claim(tmp_path, "png", other)
    with pytest.raises(
        UserError, match=r"/samples is for 3 samples of this request, more than the 2 asked for now"
    ):
        claim(tmp_path, "png", PLAN | {"samples": PLAN["samples"] | {"count": 2}})
    assert read_request(tmp_path / "samples") == request
