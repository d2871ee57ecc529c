"""Lists of concepts that differ in all that a concept may have for itself."""

import runs
import yaml

from ti_flax.config import concepts

# Slots of other shapes, lengths and rates.
LIST = {
    "cat": {"pictures": 2, "num_vectors": 2, "seed": 1},
    "dog": {"pictures": 3, "max_train_steps": 4, "learning_rate": 0.01},
    "bird": {"pictures": 1, "max_train_steps": 9, "lr_scheduler": "cosine"},
    "fish": {"pictures": 2, "learnable_property": "style", "validation_steps": 2},
    "frog": {"pictures": 3, "lr_scheduler": "linear", "lr_warmup_steps": 3},
}


def write_list(folder, listed=None):
    """A YAML file of concepts, whose pictures lie beside it."""
    lines = {}
    for name, own in (LIST if listed is None else listed).items():
        own = dict(own)
        count, seed = own.pop("pictures", 2), sum(name.encode())
        pictures = runs.draw_pictures(folder / "pictures" / name, count, seed)
        lines[name] = {
            "train_data_dir": str(pictures),
            "placeholder_token": f"<{name}>",
            **own,
        }
    path = folder / "list.yaml"
    path.write_text(yaml.safe_dump(lines, sort_keys=False))
    return path


def to_argv(model, path, output_dir, **given):
    """The command that trains the list, but for the program's name."""
    keys = runs.keys(model, "", output_dir, concepts=str(path), **given)
    for key in ("train_data_dir", "placeholder_token"):
        del keys[key]
    return runs.to_argv(keys)


def load(model, path, output_dir, **given):
    return concepts.load(to_argv(model, path, output_dir, **given))
