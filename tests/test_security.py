"""SECURITY.md: the package calls nothing that would execute a file of a stranger."""

import ast
import configparser
import re
from pathlib import Path

import pytest
import yaml

import ti_flax
from ti_flax.config import yaml_file

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ti_flax"
# Not in the wheel: it made the embedded model, and reads its own files.
OWN = PACKAGE / "quickstart" / "base_model"
EXECUTE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler"),
    *("marshal.load", "marshal.loads", "shelve.open", "runpy.run_path"),
    *("dill.load", "dill.loads", "joblib.load", "torch.load"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
}
# Where a module or a program of ours is started by its name.
STARTS = {
    "__init__.py": "importlib.import_module",
    "__main__.py": "runpy.run_module",
    "benchmarks/command.py": "importlib.import_module",
    "benchmarks/concepts/timed.py": "subprocess.Popen",
    "benchmarks/turns.py": "subprocess.Popen",
    "benchmarks/worker.py": "importlib.import_module",
    "config/door.py": "importlib.import_module",
    "runtime/completion.py": "runpy.run_module",
    "runtime/process.py": "os.execv",
}


def calls_of(source):
    """Each call's dotted name, and the names of its keywords."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg for word in node.keywords}


def dangers_of(source):
    """Calls that may execute what they are given."""
    for name, keywords in calls_of(source):
        if name in EXECUTE or "trust_remote_code" in keywords:
            yield name
        if "allow_pickle" in keywords and name != "np.save":
            yield name


def test_the_package_calls_nothing_that_executes_a_file():
    sources = [path for path in PACKAGE.rglob("*.py") if OWN not in path.parents]
    assert len(sources) > 150
    for path in sources:
        assert not [*dangers_of(path.read_text())], path


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "x = [eval(text) for text in texts]",
    ],
)
def test_the_check_sees_such_a_call(source):
    assert [*dangers_of(source)]


def test_modules_and_programs_are_started_where_they_are_the_packages_own():
    started = {}
    for path in PACKAGE.rglob("*.py"):
        if OWN not in path.parents:
            for name, _ in calls_of(path.read_text()):
                if name.startswith(("subprocess.", "os.exec", "os.spawn")) or name in (
                    "importlib.import_module",
                    "runpy.run_module",
                ):
                    started[path.relative_to(PACKAGE).as_posix()] = name
    assert started == STARTS


def test_yaml_makes_data_alone(tmp_path):
    assert issubclass(yaml_file._StrictLoader, yaml.SafeLoader)
    file = tmp_path / "run.yaml"
    file.write_text("seed: !!python/object/apply:os.mkdir [made]")
    with pytest.raises(ti_flax.UserError, match="not valid YAML"):
        yaml_file.read_yaml(file, ["seed"])


def test_the_citation_is_of_this_version_and_address():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    about = configparser.ConfigParser()
    about.read(ROOT / "setup.cfg")
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["authors"]
    assert cited["version"] == ti_flax.__version__
    # The newest release, below what is not released yet.
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, released, *_ = re.findall(r"(?m)^## (.+)$", changes)
    assert unreleased == "[Unreleased]"
    assert released == f"[{cited['version']}] - {cited['date-released']}"
    for name in (unreleased, f"[{cited['version']}]"):
        assert f"\n{name}: {about['metadata']['url']}/" in changes
    assert cited["license"] == about["metadata"]["license"]
    assert cited["repository-code"] == about["metadata"]["url"]
    policy = (ROOT / "SECURITY.md").read_text()
    assert f"({about['metadata']['url']}/security)" in policy
