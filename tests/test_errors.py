import pytest

from uvit_jax.errors import nearest


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("dept", ["depth", "dtype"], "depth"),
        ("amd", ["adm", "lanczos"], "adm"),
        ("stepz", ["steps", "seed"], "steps"),
        ("guidence_scal", ["guidance_low", "guidance_scale"], "guidance_scale"),
        ("warmup", ["lr", "warmup_steps"], "warmup_steps"),
        ("float64", ["float32", "bfloat16", "fp8"], None),
        ("jpg", ["png", "npz"], None),
        ("", ["png", "x"], None),
        ("x", [], None),
    ],
)
def test_only_a_name_that_is_near_is_suggested(word, known, meant):
    assert nearest(word, known) == meant
