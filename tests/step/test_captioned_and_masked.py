"""Slots with captions and slots with masks: resumed, spread, beside others."""

import jax
import numpy as np
import pytest
import slots

from ti_flax.step.slots import refill

pytestmark = pytest.mark.usefixtures("networks")

DOG = slots.Concept(seed=2, pictures=5, prompts=7, vectors=1)
KINDS = {
    "both": {"captioned": True, "masked": True},
    "captioned": {"captioned": True},
    "masked": {"masked": True},
}


def cat(kind):
    return slots.Concept(seed=1, pictures=3, prompts=5, vectors=2, **KINDS[kind])


def bird(kind):
    return slots.Concept(seed=3, pictures=2, prompts=4, vectors=1, **KINDS[kind])


def rows(state):
    return np.asarray(state.rows["text_encoder"])


@pytest.fixture(scope="module")
def recipe(networks):
    return slots.make_recipe()


@pytest.fixture(scope="module")
def plain_dog(recipe):
    """The rows of one that has neither, alone, after 20 steps."""
    return rows(slots.train(recipe, DOG, dispatches=[20]))


# What holds of slots that have both, each alone shows before a release.
@pytest.fixture(
    scope="module",
    params=[
        kind if kind == "both" else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
    ],
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def twenty_steps(recipe, kind):
    return slots.train(recipe, cat(kind), dispatches=[20])


def test_dispatches_and_a_restart_change_no_bit(recipe, kind, twenty_steps):
    state = slots.train(recipe, cat(kind), dispatches=[1, 9, 10], restarted=True)
    jax.tree.map(np.testing.assert_array_equal, state, twenty_steps)


# Tolerances of the following: tests/step/test_train_step.py.
def test_eight_devices_agree_with_one(kind, twenty_steps):
    state = slots.train(slots.make_recipe(8), cat(kind), dispatches=[20])
    np.testing.assert_allclose(rows(state), rows(twenty_steps), rtol=0, atol=2e-5)


def test_beside_others_and_refilled_a_concept_learns_as_alone(
    recipe, kind, twenty_steps, plain_dog
):
    together = rows(slots.train(recipe, DOG, cat(kind), dispatches=[20]))
    np.testing.assert_allclose(together[1], rows(twenty_steps)[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(together[0, :1], plain_dog[0], rtol=0, atol=2e-5)
    state, bank = slots.make_run(recipe, cat(kind), DOG)
    state, bank = refill(state, bank, 0, *slots.newcomer(recipe, bird(kind)))
    run = slots.compiled(recipe)
    state, _ = run(state, slots.make_frozen(recipe), bank, 4)
    alone = rows(slots.train(recipe, bird(kind), dispatches=[4]))
    np.testing.assert_allclose(rows(state)[0, :1], alone[0], rtol=0, atol=2e-5)
