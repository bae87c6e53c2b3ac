import dataclasses

import pytest

from uvit_jax.experiment.config import Experiment, field_names
from uvit_jax.experiment.field_docs import attributes, field_docs, section_texts

DOCS = field_docs()


def test_every_field_has_a_text():
    assert {doc.name for doc in DOCS if not doc.text} == set()


def test_the_fields_are_those_of_the_command_line():
    assert sorted(doc.name for doc in DOCS) == sorted(field_names())


def test_no_docstring_describes_a_field_that_is_not_there():
    sections = {name: getattr(Experiment(), name) for name in section_texts()}
    described = {
        f"{name}.{field}"
        for name, section in sections.items()
        for base in type(section).__mro__
        for field in attributes(base.__doc__ or "")
    }
    assert described - {doc.name for doc in DOCS} == set()


@pytest.mark.parametrize(
    ("name", "type_", "default", "text"),
    [
        ("model.num_heads", "int", 8, "attention heads; head_dim = embed_dim / num_heads."),
        ("autoencoder.scale", "float or None", None, "factor of the latents; None for"),
        ("optimizer.betas", "two numbers", (0.99, 0.99), "decay rates of the two moments."),
        ("init_from", "str", "", "weights to start from or to sample with: an official"),
        # Of the base class's docstring.
        ("sample.t_end", "float", 1e-3, "time that sampling ends at, above 0."),
        # Over several lines, with a colon.
        (
            "model.conv",
            "str",
            "after",
            'where a 3x3 convolution is: "after" the linear head on the image, "before" it on the '
            'token map, "none".',
        ),
    ],
)
def test_a_field_is_described_with_its_type_and_default(name, type_, default, text):
    doc = next(doc for doc in DOCS if doc.name == name)
    assert (doc.type, doc.default) == (type_, default)
    assert doc.text.startswith(text)


def test_every_section_is_described_in_a_sentence():
    texts = section_texts()
    assert set(texts) == {
        field.name
        for field in dataclasses.fields(Experiment)
        if dataclasses.is_dataclass(getattr(Experiment(), field.name))
    }
    assert texts["optimizer"] == "AdamW and its learning rate."
