"""Inputs of the job `prepare`: a folder of images, and an autoencoder."""

import pathlib

import pytest

from tests.jobs.images import write_images, write_kl


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def kl(tmp_path_factory) -> str:
    return write_kl(tmp_path_factory.mktemp("kl") / "kl.safetensors")
