"""The public functions: lazy, documented, and with their keys in the signature."""

import ast
import inspect
import pydoc
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import ti_flax
from ti_flax.config import generate_keys, signatures
from ti_flax.formats import convert, describe
from ti_flax.generation import verify
from ti_flax.publishing import push

# A public function with its keys, and what its signature says of them.
FUNCTIONS = {
    "convert_embedding": (convert.ConvertKeys, signatures.ConvertSettings),
    "describe_embedding": (describe.InspectKeys, signatures.InspectSettings),
    "generate_images": (generate_keys.GenerateKeys, signatures.GenerateSettings),
    "push_to_hub": (push.PushKeys, signatures.PushSettings),
    "verify_embedding": (verify.VerifyKeys, signatures.VerifySettings),
}


def members(hint):
    """The types that a hint stands for; those of a Literal are its values."""
    if get_origin(hint) is Literal:
        return {*get_args(hint)}
    if isinstance(hint, types.UnionType) or str(hint).startswith("typing.Optional"):
        return set().union(*map(members, get_args(hint)))
    return {hint}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_editors_are_told_are_the_keys(name):
    keys, told = FUNCTIONS[name]
    assert [*told.__annotations__] == [*keys.model_fields]
    required = {key for key, field in keys.model_fields.items() if field.is_required()}
    assert told.__required_keys__ == required
    for key, hint in get_type_hints(told).items():
        ours, kinds = keys.model_fields[key].annotation, members(hint)
        assert (type(None) in kinds) == (type(None) in members(ours)), key
        for kind in (bool, int, float):
            assert (kind in kinds) == (kind in members(ours)), key
        if key != "to":  # one format more would need a release of the types
            values = {value for value in members(ours) if isinstance(value, str)}
            assert values <= kinds and values == {*filter(is_text, kinds)}, key
        # Several texts may be given as one.
        assert (get_origin(ours) is tuple) == ("Sequence" in str(hint)), key


def is_text(member):
    return isinstance(member, str)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_each_key_with_its_default(name):
    keys, _ = FUNCTIONS[name]
    parameters = inspect.signature(getattr(ti_flax, name)).parameters
    assert [*parameters][-len(keys.model_fields) :] == [*keys.model_fields]
    shown = pydoc.render_doc(getattr(ti_flax, name), renderer=pydoc.plaintext)
    for key, field in keys.model_fields.items():
        parameter = parameters[key]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{key}: " in shown
        if field.is_required():
            assert parameter.default is inspect.Parameter.empty
        else:
            assert parameter.default == field.default


def test_help_of_the_configuration_has_each_key_with_its_description():
    parameters = inspect.signature(ti_flax.Config).parameters
    fields = ti_flax.Config.model_fields
    assert [*parameters] == [*fields]
    shown = pydoc.render_doc(ti_flax.Config, renderer=pydoc.plaintext)
    words = " ".join(shown.replace("|", " ").split())
    for key, field in fields.items():
        told = words.split(f" {key} (", 1)[1].split(")", 1)[1]
        assert told.split()[:3] == field.description.replace("|", " ").split()[:3], key
        if field.is_required():
            assert (
                f" {key} (" in words
                and parameters[key].default is parameters[key].empty
            )
        else:
            assert parameters[key].default == field.default
        # No annotation of pydantic's.
        assert "Validator" not in str(parameters[key])
    assert "learning_rate (X; default: 0.002) peak of the learning rate" in words
    assert "train_data_dir (PATH; required) folder with the concept's" in words


def test_every_public_name_is_listed_documented_and_known_to_type_checkers():
    tree = ast.parse(Path(ti_flax.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {name.name: line.module for line in checked.body for name in line.names}
    assert [*homes] == sorted(homes, key=lambda name: homes[name])
    assert {*homes} == {*ti_flax.__all__}
    for name in ti_flax.__all__:
        found = getattr(ti_flax, name)
        assert found.__doc__ and found.__name__ == name
        assert homes[name] == f"ti_flax.{ti_flax._HOMES[name]}"
        assert name in dir(ti_flax)
    assert (Path(ti_flax.__file__).parent / "py.typed").is_file()


def test_the_package_and_its_names_come_without_jax():
    code = "import sys, ti_flax; ti_flax.Config; dir(ti_flax); "
    code += "ti_flax.convert_embedding; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
