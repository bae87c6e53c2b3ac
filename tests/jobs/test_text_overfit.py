"""A text model that knows its images by heart gives each back for its own caption, and another's
for another's.
"""

import pytest

from benchmarks.text import overfit
from tests.jobs.images import write_clip, write_coco

pytestmark = pytest.mark.slow


def test_captions_steer_which_image_comes_back(tmp_path):
    write_coco(tmp_path / "coco", count=16, captions=2)
    fields = write_clip(tmp_path / "clip") | {"model.context_dim": 32, "model.context_length": 24}
    own, following, stayed = overfit(tmp_path / "coco", "train2017", tmp_path, fields)
    assert own >= 14
    assert following >= 14
    assert stayed <= 1
