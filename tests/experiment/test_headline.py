import logging

import pytest

from uvit_jax.experiment.headline import headed, headline
from uvit_jax.parallel.mesh import MeshConfig

LOG = logging.getLogger("uvit_jax")


@pytest.mark.parametrize(
    ("mesh", "devices", "rest"),
    [
        (MeshConfig(), True, ", 1 x cpu, mesh data 1 x fsdp 1 x tensor 1"),
        # The job itself says that these are too many for one device.
        (MeshConfig(data=3), True, ", 1 x cpu"),
        (None, True, ", 1 x cpu"),
        (MeshConfig(), False, ""),
    ],
)
def test_a_jobs_first_line_says_what_runs_where(mesh, devices, rest):
    line = headline("train", "configs/digits.py", mesh, devices=devices)
    version, _, after = line.partition(", ")
    assert version.startswith("uvit_jax ")
    assert after == f"train configs/digits.py{rest}"


def test_a_headline_comes_once_before_the_first_line_that_is_logged(caplog):
    with caplog.at_level("INFO", "uvit_jax"):
        with headed("what runs"):
            LOG.debug("not shown")
            LOG.info("%d images", 3)
            LOG.info("done")
        LOG.info("after")
    assert caplog.messages == ["what runs\n3 images", "done", "after"]


def test_a_job_that_logs_nothing_has_no_headline(caplog):
    with caplog.at_level("INFO", "uvit_jax"), pytest.raises(KeyError), headed("what runs"):
        raise KeyError
    LOG.warning("after")
    assert caplog.messages == ["after"]
