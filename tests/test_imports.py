"""A module imports only from what stands before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ti_flax"
ORDER = [
    "errors",
    "files",
    "hub_ids",
    "startup",
    "diffusers_flags",
    "command_line",
    "config_keys",
    "config",
    "generate_keys",
    "templates",
    "known_words",
    "tokens",
    "data",
    "data.doctor",
    "data.__main__",
    "sharding",
    "topologies",
    "models",
    "models.attention",
    "models.convolution",
    "models.layers",
    "models.clip_text",
    "models.unet",
    "models.vae",
    "models.weights",
    "models.shapes",
    "memory",
    "diffusion",
    "noise_levels",
    "samplers",
    "schedulers",
    "distributed",
    "step",
    "flops",
    "stand_in",
    "checkpoint",
    "pickle_machine",
    "torch_pickle",
    "torch_zip",
    "formats",
    "formats.embedding",
    "formats.metadata",
    "formats.npy",
    "formats.png",
    "formats.containers",
    "formats.diffusers",
    "formats.named_rows",
    "formats.string_to_param",
    "formats.registry",
    "hub_download",
    "export",
    "provenance",
    "model_card",
    "full_pipeline",
    "hub",
    "publish",
    "pictures",
    "pictures_out",
    "previews",
    "metrics_out",
    "run_files",
    "html_report",
    "report",
    "run_folder",
    "stop_signals",
    "looks",
    "watch",
    "loop",
    "trainer",
    "fit",
    "fit_report",
    "step_keys",
    "jax_side",
    "torch_side",
    "jax_kernels",
    "torch_kernels",
    "step_side",
    "sides",
    "step_speed",
    "kernel_speed",
    "generator",
    "generate",
    "random_model",
    "benchmark",
    "convert",
    "inspect",
    "push",
    "verify",
    "train",
    "train_compile",
]


def imported(path):
    """Names of the package's own modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "ti_flax":
                module = ".".join(parts[1:])
                for alias in node.names:
                    yield ".".join(filter(None, (module, alias.name)))
                if module:
                    yield module


def test_imports_point_one_way():
    checked = 0
    for place, module in enumerate(ORDER):
        path = PACKAGE / (module.replace(".", "/") + ".py")
        if not path.exists():
            path = PACKAGE / module / "__init__.py"
        for name in imported(path):
            if name in ORDER:
                assert ORDER.index(name) < place, f"{module} imports {name}"
                checked += 1
    assert checked > 30


def test_the_face_of_the_package_is_there():
    for name in ti_flax.__all__:
        assert callable(getattr(ti_flax, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        ti_flax.no_such_name  # noqa: B018


def test_every_module_has_its_place():
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "quickstart" not in path.parts
    }
    assert modules == set(ORDER) - {"data", "models", "formats"}
