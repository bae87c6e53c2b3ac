"""The plan that all shards share."""

import dataclasses

from uvit_jax.experiment.config import Experiment


def test_every_prepare_field_is_in_the_plan_or_changes_no_record():
    # Whoever adds a field that changes what is stored must add it to the plan: an old folder would
    # be gone on with.
    from uvit_jax.jobs.preparation.plan import Plan

    # Of what data_dir holds, the plan has the listing; max_pixels may be raised where a large
    # picture stopped the job.
    changes_nothing = {
        "data_dir",
        "out",
        "latents",
        "batch_size",
        "threads",
        "on_error",
        "verify",
        "max_pixels",
    }
    fields = {field.name for field in dataclasses.fields(Experiment().prepare)}
    assert fields - changes_nothing <= {field.name for field in dataclasses.fields(Plan)}
