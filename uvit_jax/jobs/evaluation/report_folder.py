"""The folder of a report: its name, and whose it is while the evaluation is unfinished."""

import json
import logging
import pathlib
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.experiment.workdir import folder_name
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.kept_images import GRID, PNGS
from uvit_jax.jobs.evaluation.report import REPORT, TABLE
from uvit_jax.jobs.sampling.sample_folder import FILE_NAME as SAMPLES
from uvit_jax.jobs.sampling.sample_folder import NPZ, Request, claim, first_difference

LOG = logging.getLogger("uvit_jax")

# The sub-folder of an unfinished evaluation's state; it is deleted at the end.
STATE = ".evaluation"
_PLAN = "plan.json"


def report_folder(
    out: str, workdir: pathlib.Path, title: str, plan: dict[str, Any], *, point: str = ""
) -> pathlib.Path:
    """The folder of a report: `config.evaluate.out`, or one in the workdir named after its plan.

    point: sub-folder of `out`, for a point of a sweep.
    """
    if out:
        return pathlib.Path(out, point)
    return workdir / "evaluations" / folder_name(title, plan)


def finished_report(out: pathlib.Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The report in a folder, if it is finished.

    Raises:
      UserError: for a report of another plan, or one that can't be read.
    """
    path = out / REPORT
    if not path.exists():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, OSError):
        raise UserError(
            f"{path} can't be read as a report: delete it, and it is made again"
        ) from None
    if report.get("plan") != plan:
        raise UserError(
            f"{out} holds another evaluation ({first_difference(report.get('plan') or {}, plan)}): "
            "expected a new config.evaluate.out"
        )
    LOG.info("already evaluated: %s", path)
    return report


def claim_folder(out: pathlib.Path, plan: dict[str, Any], save: str, field: str) -> None:
    """Notes in a folder the plan of its evaluation, or checks that a killed run had the same.

    field: the config field that names the folder, for error sentences.

    Raises:
      UserError: for a folder that holds another evaluation, or files of something else.
    """
    state = out / STATE
    if (state / _PLAN).exists():
        _check_plan(state, plan)
    else:
        _check_free(out, save, field)
    if save == "png":
        asked = {name: value for name, value in plan["samples"].items() if name != "count"}
        (out / PNGS).mkdir(exist_ok=True)
        claim(out / PNGS, Request("png", plan["samples"]["count"], asked), field)
    if not (state / _PLAN).exists():
        with atomic_write(state / _PLAN) as file:
            file.write(json.dumps(plan, indent=1).encode())


def _check_free(out: pathlib.Path, save: str, field: str) -> None:
    """Raises UserError for files of another job, or of a person, that would be overwritten."""
    names = [SAMPLES]
    if not (out / TABLE).exists():  # the files beside that table are an evaluation's own
        names += [GRID, *[NPZ] * (save == "npz")]
    for name in names:
        if (out / name).exists():
            raise UserError(
                f"{field} {out} holds {name!r} of something else, expected a folder for this "
                "report alone"
            )


def _check_plan(state: pathlib.Path, plan: dict[str, Any]) -> None:
    """Raises UserError if a killed run in this folder had another plan."""
    try:
        found = json.loads((state / _PLAN).read_text())
    except (ValueError, OSError):
        found = {}
    if found != plan:
        raise UserError(
            f"{state.parent} holds half of another evaluation ({first_difference(found, plan)}): "
            f"expected another config.evaluate.out, or {state} deleted"
        )
