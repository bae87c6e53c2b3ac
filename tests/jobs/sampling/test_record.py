"""A request's hash in the names of folders: the same request finds its samples again."""

import dataclasses

import numpy as np
import pytest

from tests.jobs.digits_config import experiment
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.weights import Weights
from uvit_jax.experiment.workdir import folder_name
from uvit_jax.jobs.sample import request_of
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.record import drawn_samples

LABELS_OF_DATA = {"sample__labels": "data", "sample__solver": "ddim", "sample__seed": 3}
# Fields that do not change a sample's pixels.
EXECUTION = {
    "sample__batch_size": 7,
    "sample__out": "elsewhere",
    "model__remat": "full",
    "model__scan_blocks": True,
    "train__steps": 9,
}


def names(class_names: tuple[str, ...] = (), **changes) -> tuple[str, str]:
    """The names of an evaluation's and a request's folder, for weights made up here."""
    made = experiment(**changes)
    assembled = assemble(made, DataCard("digits", class_names))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights = Weights({"a": {"kernel": array}}, "t", "step_00000008", {"kind": "ema", "step": 8})
    conditions = open_conditions(made, assembled.card, count=20)
    record = drawn_samples(made, assembled, conditions, weights, count=20)
    request = request_of(dataclasses.replace(made.sample, num_samples=20), record)
    return folder_name("plan", record), folder_name("samples", dataclasses.asdict(request))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("plan_77d6cec2", "samples_0cb0a109")),
        (EXECUTION, ("plan_77d6cec2", "samples_0cb0a109")),
        (LABELS_OF_DATA, ("plan_f4235c45", "samples_d41b60fb")),
    ],
)
def test_the_folder_of_a_request_keeps_its_name_from_version_to_version(changes, expected):
    assert names(**changes) == expected


def test_a_class_asked_for_by_name_is_the_request_of_its_number():
    animals = tuple(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"])
    by_name = names(animals, sample__labels="Dog, ant")
    assert by_name == names(animals, sample__labels="3,0") == names(sample__labels="3, 0")
    assert by_name != names(animals, sample__labels="ant, dog")
