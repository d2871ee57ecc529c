"""Every configuration starts on any number of devices and learns the rows of one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import many
import numpy as np
import pytest
import runs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))

# One process makes all that one number of devices is asked for.
_EVERYTHING = """
import sys
from pathlib import Path
import numpy as np
from ti_flax.benchmarks import keys, step_jax
from ti_flax.config import concepts, run_config
from ti_flax.formats import find
from ti_flax.generation import generate
from ti_flax.training import many, run

root, model, pictures, listed, out = map(Path, sys.argv[1:])
found = {}
for config in sorted((root / "configs").glob("*.yaml")):
    name = config.stem
    settings = run_config.load_config([
        f"--config={config}", f"--pretrained_model_name_or_path={model}",
        f"--train_data_dir={pictures}", "--initializer_token=toy", "--resolution=16",
        "--variant=null",
        "--max_train_steps=2", "--lr_warmup_steps=0", f"--output_dir={out / name}",
    ])
    (learned,) = run.train_concepts(settings, progress=False)
    (found[name],) = learned.rows.values()
    word = settings.placeholder_token
asked = concepts.load([
    f"--pretrained_model_name_or_path={model}", f"--concepts={listed}", "--slots=2",
    "--resolution=16", "--max_train_steps=6", f"--output_dir={out / 'list'}",
])
many.train_many(asked, progress=False)
for concept in asked.concepts:
    learned = find.load_embedding(concept.config.output_dir)
    (found[f"of the list: {concept.name}"],) = learned.rows.values()
pictures = generate.generate_images(
    progress=False, model=str(model), embedding=[str(out / name)], steps=2,
    prompt=[f"a {word}"], num_images=3, height=16, width=16,
)
found["generated"] = np.stack([np.asarray(picture) for picture in pictures])
facts, turn = step_jax.prepare(keys.StepKeys(model="quickstart", steps=1))
assert turn() > 0
np.savez(out / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def learn(tiny_model, tmp_path_factory):
    """What all configurations give on so many devices."""
    pictures = runs.draw_pictures(tmp_path_factory.mktemp("pictures"))
    listed = many.write_list(tmp_path_factory.mktemp("list"))

    @functools.cache
    def on(devices):
        out = tmp_path_factory.mktemp(f"devices{devices}")
        given = ROOT, tiny_model, pictures, listed, out
        command = [sys.executable, "-c", _EVERYTHING, *given]
        flags = f"--xla_force_host_platform_device_count={devices}"
        ran = subprocess.run(
            command,
            env=os.environ
            | {"PYTHONPATH": str(ROOT)}
            | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"},
            capture_output=True,
            text=True,
            cwd=out,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return dict(np.load(out / "found.npz"))

    return on


@pytest.mark.slow  # a process that compiles everything for each number: minutes
@pytest.mark.parametrize("devices", [2, 3, 4, 6, 8])
def test_every_configuration_learns_the_rows_of_one_device(learn, devices):
    alone, found = learn(1), learn(devices)
    several = [f"of the list: {name}" for name in many.LIST]
    assert sorted(found) == sorted([*CONFIGS, *several, "generated"])
    for name in [*CONFIGS, *several]:
        # As in tests/step/test_train_step.py: sums in another order.
        np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=2e-5)
    apart = np.abs(found["generated"].astype(int) - alone["generated"])
    assert apart.max() <= 1  # of 255, where rounding goes the other way
