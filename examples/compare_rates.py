"""Learns a word at several learning rates, and compares them on the same fixed set.

    python examples/compare_rates.py [STEPS [RATE ...]]

100 steps a rate if none are given. For many words, or many values, `ti-flax train
--sweep` trains them together in one program.
"""

import sys
from pathlib import Path

from ti_flax import Config, train_concepts
from ti_flax.quickstart.settings import MODEL, PICTURES

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
rates = [float(rate) for rate in sys.argv[2:]] or [1e-3, 3e-3, 1e-2]
print("learning rate  fixed loss before and after  distance from the start")
for rate in rates:
    config = Config(
        pretrained_model_name_or_path=str(MODEL),
        train_data_dir=PICTURES,
        placeholder_token="<bumbee>",
        initializer_token="heart",
        resolution=64,
        train_batch_size=8,
        learning_rate=rate,
        hold_row_norm="clip",
        max_train_steps=steps,
        validation_steps=max(1, steps // 2),
        report_to="none",
        output_dir=Path(f"output/compare_rates/{rate:g}"),
        overwrite_output_dir=True,
    )
    (run,) = train_concepts(config, progress=False)
    looks = run.validations
    losses, distance = looks["fixed_loss"], looks["distance/0"]
    print(f"{rate:13g}  {losses[0]:.4f} {losses[-1]:.4f}  {distance[-1]:.3f}")
