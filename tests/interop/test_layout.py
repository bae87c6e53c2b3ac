"""Tables of published layouts: ways there and back, and what is read by them."""

import numpy as np
import pytest

from tests.reference_weights import draw
from uvit_jax.errors import UserError
from uvit_jax.interop.layout import Entry, convolution, linear, norm, read_layout

LAYERS = {
    "linear": linear("a", ("ours",), 3, 5),
    "norm": norm("a", ("ours",), 4),
    "convolution": convolution("a", ("ours",), 2, 3, kernel=3),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_an_array_comes_back_as_it_was(layer):
    for name, entry in LAYERS[layer].items():
        published = draw(name, entry.shape)
        ours = entry.to_ours(published)
        np.testing.assert_array_equal(entry.to_published(ours), published)


def test_a_linear_layer_is_read_by_our_path_and_computes_the_same():
    layout = LAYERS["linear"]
    state = {name: draw(name, entry.shape) for name, entry in layout.items()}
    arrays = read_layout(state, layout, "fault")
    x = draw("x", (7, 3))
    expected = x @ state["a.weight"].T + state["a.bias"]
    np.testing.assert_array_equal(x @ arrays["ours", "kernel"] + arrays["ours", "bias"], expected)


def test_an_array_may_have_another_shape_of_as_many_elements():
    layout = {"w": Entry(("w",), (2, 3, 1, 1), other_shapes=((2, 3),))}
    array = draw("w", (2, 3))
    found = read_layout({"w": array}, layout, "fault")["w",]
    np.testing.assert_array_equal(found, array[..., None, None])


def test_a_missing_array_is_named_after_the_fault():
    with pytest.raises(UserError, match=r"^these are others: arrays 1 missing \(first: a\.bias\)$"):
        read_layout({"a.weight": draw("w", (5, 3))}, LAYERS["linear"], "these are others")
