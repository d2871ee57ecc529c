"""One train step of the tiny model, to the digit.

If this fails, a batch is no longer the function of (seed, step, example index) that it
was, or the loss, its gradient or the optimizer compute something else: words that were
learned before cannot be learned again, and checkpoints resume into another run. That is
never an accident to be recorded anew: say in CHANGELOG.md what changed and why, then
run `python tests/test_golden_step.py` and put in what it prints.
"""

import jax
import jax.numpy as jnp
import numpy as np
import slots

from ti_flax.step import dispatch
from ti_flax.step.bank import draw_batch

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)


def take_step():
    """Metrics and rows of the first step, and the batch that it drew."""
    recipe = slots.make_recipe(batch=4)
    state, bank = slots.make_run(recipe, CAT)
    drawn = draw_batch(bank, state.step, jnp.arange(4), slots.FAMILY)
    state, metrics = dispatch.compile_train_steps(recipe)(
        state, slots.make_frozen(recipe), bank, 1
    )
    return jax.tree.map(np.asarray, (drawn, state.rows["text_encoder"], metrics))


GOLDEN = {
    "timesteps": [609, 475, 849, 568],
    "prompts": [[4, 18, 12], [5, 8, 13], [5, 8, 13], [11, 10, 19]],
    "latents": [
        -0.06991475820541382,
        -0.14003989100456238,
        -0.01626020483672619,
        -0.4418756663799286,
    ],
    "noise": [
        -1.9752017259597778,
        -0.7397016286849976,
        0.5104947686195374,
        -0.38981232047080994,
    ],
    "loss": [1.2920684814453125],
    "grad_norm": [0.03424514830112457],
    "rows": [
        [0.35558411478996277, 0.8116182088851929, 0.3404369652271271],
        [0.04972203075885773, -0.30245664715766907, -0.7719090580940247],
    ],
}


def digits():
    drawn, rows, metrics = take_step()
    return {
        "timesteps": drawn.times[0].tolist(),
        "prompts": drawn.ids["text_encoder"][0, :, :3].tolist(),
        "latents": drawn.latents[0, :, 0, 0, 0].tolist(),
        "noise": drawn.noise[0, :, 0, 0, 0].tolist(),
        "loss": metrics.loss[0].tolist(),
        "grad_norm": metrics.grad_norm[0].tolist(),
        "rows": rows[0, :, :3].tolist(),
    }


def test_a_step_is_what_it_was():
    found = digits()
    assert found.keys() == GOLDEN.keys()
    for name, value in GOLDEN.items():
        # Integers are exact; other CPUs sum in another order, which is the last digits.
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


if __name__ == "__main__":
    import conftest  # noqa: F401, the devices and compiler of the tests

    print(digits())
