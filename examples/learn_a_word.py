"""Teaches the package's small model a word, and watches it learn.

    python examples/learn_a_word.py [STEPS]

300 steps if none are given; nothing is downloaded, and no GPU is needed.
"""

import sys
from pathlib import Path

from ti_flax import Config, Step, Validation, train_concepts
from ti_flax.quickstart.settings import MODEL, PICTURES

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
config = Config(
    # Your own: a Hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
    pretrained_model_name_or_path=str(MODEL),
    train_data_dir=PICTURES,
    placeholder_token="<bumbee>",
    initializer_token="heart",
    resolution=64,
    train_batch_size=8,
    learning_rate=3e-3,
    hold_row_norm="clip",
    max_train_steps=steps,
    validation_steps=max(1, steps // 3),
    output_dir=Path("output/learn_a_word"),
    overwrite_output_dir=True,
)


def on_step(step: Step) -> None:
    if step.step % 50 == 0:
        print(f"step {step.step}: loss {step.loss:.4f}, norm {step.row_norm[0]:.3f}")


def on_look(look: Validation) -> None:
    near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in look.nearest[0][:3])
    print(f"look at step {look.step}: fixed loss {look.fixed_loss:.4f}, near {near}")


(run,) = train_concepts(config, on_step=on_step, on_look=on_look)
print(f"{run.token}: {run.rows['text_encoder'].shape} in {run.folder}")
# All of them as arrays of one length: pandas.DataFrame(run.metrics) is a table.
print(f"mean loss of the last ten steps: {run.metrics['loss'][-10:].mean():.4f}")
