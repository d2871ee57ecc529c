"""What every train step keeps to, however it draws and updates: shown by 20 steps."""

import numpy as np
import slots

# Sums in another order: tests/step/test_train_step.py says why it is so much.
ATOL = 2e-5


def rows_of(state):
    return state.rows["text_encoder"]


def agrees_in_parts(make_recipe, concept, whole, devices, batch, parts):
    """On other devices, in micro-batches: the rows of `whole`, of one device."""
    found = slots.train(make_recipe(devices, batch, parts), concept, dispatches=[20])
    np.testing.assert_allclose(rows_of(found), rows_of(whole), rtol=0, atol=ATOL)


def agrees_beside(make_recipe, other, concept, whole):
    """In a slot beside another concept: the rows of `whole`, of one alone."""
    found = slots.train(make_recipe(), other, concept, dispatches=[20])
    np.testing.assert_allclose(rows_of(found)[1], rows_of(whole)[0], rtol=0, atol=ATOL)
