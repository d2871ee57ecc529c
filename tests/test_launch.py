"""The scripts in launch/: what they run, word for word, against recording stand-ins."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import many
import pytest
import yaml

from ti_flax.training import ledger

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "shell.sh")
ZONE = "--zone=us-west4-a"

# Answers as the real program would: the first rule whose words are in the command, and
# where a rule has several answers each in turn, the last for ever. A shell finds
# Python, as the first line knows no path with a space; to Python that is a string.
_STAND_IN = """\
#!/bin/sh
''':'
exec "{python}" -IS "$0" "$@"
'''
import json, os, sys
from pathlib import Path
folder, name = Path({folder!r}), Path(sys.argv[0]).name
command = [name, *sys.argv[1:]]
with (folder / "calls").open("a") as calls:
    stdin = sys.stdin.read() if "-" in command else None
    calls.write(json.dumps([command, stdin]) + "\\n")
rules = json.loads((folder / "rules").read_text())
for number, (words, answers) in enumerate(rules):
    if words in " ".join(command):
        count = folder / f"count{{number}}"
        seen = int(count.read_text()) if count.exists() else 0
        count.write_text(str(seen + 1))
        code, out, err = answers[min(seen, len(answers) - 1)]
        print(out, end="")
        print(err, end="", file=sys.stderr)
        sys.exit(code)
"""


class Machine:
    """A folder with stand-ins on PATH, and what was asked of them."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        self.path = f"{self.bin}:{os.environ['PATH']}"

    def install(self, *names, rules=()):
        (self.folder / "rules").write_text(json.dumps(rules))
        for name in names:
            program = self.bin / name
            text = _STAND_IN.format(python=sys.executable, folder=str(self.folder))
            program.write_text(text)
            program.chmod(0o755)

    def run(self, script, *arguments, **env):
        temporary = self.folder / "temporary"
        temporary.mkdir(exist_ok=True)
        done = subprocess.run(
            [LAUNCH / script, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=300,
            env={
                **os.environ,
                "PATH": self.path,
                "PYTHON": sys.executable,  # has what the check of the keys needs
                "TI_FLAX_POLL_SECONDS": "0",
                "TMPDIR": str(temporary),
                **env,
            },
        )
        assert not [*temporary.iterdir()], "left behind"
        return done

    def calls(self, with_stdin=False):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return calls if with_stdin else [command for command, _ in calls]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def job(machine):
    """Arguments of a run whose names need quoting."""
    (machine.folder / "my cat's pictures").mkdir()
    (machine.folder / "cat.yaml").write_text("seed: 1\n")
    return [
        *("--data", "my cat's pictures", "--output", "out put/cat", "--zone"),
        *("us-west4-a", "--", "--config", "cat.yaml"),
        *("--placeholder_token", "<my cat's>", "--seed", "3"),
    ]


GONE = (1, "", "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no such node\n")
READY = (0, "READY\n", "")
PREEMPTED = (0, "PREEMPTED\n", "")
ENDED = (0, "step 1\n\nexit:0\n", "")
STATE, STATUS = "tpu-vm describe", "tail -c"
# What a training cannot be without, beside its pictures.
WORD = ["--pretrained_model_name_or_path", "m", "--placeholder_token", "<my cat's>"]


def tpu(verb, *words):
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, "cat-1", *words]


DESCRIBE = tpu("describe", "--format=value(state)", ZONE)
CREATE = tpu(
    "create", "--accelerator-type=v5litepod-4", "--version=v2-alpha-tpuv5-lite"
)


def scripts_of(calls):
    """What the hosts are told to do, in the order of the calls."""
    return [
        word.removeprefix("--command=")
        for call in calls
        for word in call
        if word.startswith("--command=")
    ]


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run(
        [shellcheck, "-x", *LAUNCH.glob("*.sh")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_explains_itself(script, machine):
    ran = machine.run(script, "--help")
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0].endswith(".")
    assert f"launch/{script}" in ran.stdout and "--dry_run" in ran.stdout
    assert "#" not in ran.stdout and "set -euo" not in ran.stdout


def test_a_tpu_is_made_used_and_brought_home(machine, job):
    machine.install("gcloud", rules=[[STATE, [GONE, READY]], [STATUS, [ENDED]]])
    ran = machine.run("tpu_vm.sh", "run", "cat-1", "--spot", "--delete", *job)
    assert ran.returncode == 0, ran.stderr
    calls = machine.calls()
    archive = calls[3][5]
    assert calls[:3] == [DESCRIBE, [*CREATE, "--spot", ZONE], DESCRIBE]
    assert calls[3] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", archive, "cat-1:"),
        *("--worker=all", ZONE),
    ]
    assert archive.endswith("/ti_flax.tar.gz")
    install, start, status = scripts_of(calls)
    assert "launch/local.sh --setup_only" in install
    scp = ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse"]
    assert calls[5] == [*scp, "my cat's pictures", "cat-1:run/", "--worker=all", ZONE]
    assert calls[6][5:] == ["cat.yaml", "cat-1:run/config.yaml", "--worker=all", ZONE]
    assert calls[7] == tpu("ssh", "--worker=all", f"--command={start}", ZONE)
    assert calls[8] == tpu("ssh", "--worker=0", f"--command={status}", ZONE)
    assert calls[9] == [*scp, "cat-1:run/cat", "out put", "--worker=0", ZONE]
    assert calls[10:] == [tpu("delete", "--quiet", ZONE)]
    assert (machine.folder / "out put").is_dir()
    assert "step 1" in ran.stdout
    # Each is printed, so that it can be repeated.
    assert [call for call in printed(ran.stderr) if call[0] == "gcloud"] == calls


def printed(stderr):
    """The commands that a script says it runs."""
    lines = [line[2:] for line in stderr.splitlines() if line.startswith("+ ")]
    return [shlex.split(line) for line in lines]


def test_the_words_of_the_training_arrive_unchanged(machine, job, tmp_path):
    """Runs what the TPU is told, in a shell, with a stand-in for tmux and Python."""
    machine.install("gcloud", rules=[[STATE, [READY]], [STATUS, [ENDED]]])
    machine.run("tpu_vm.sh", "run", "cat-1", *job)
    _, start, _ = scripts_of(machine.calls())
    tmux = machine.bin / "tmux"
    # has-session fails; new-session -d -s ti_flax COMMAND runs it by sh, as tmux does
    tmux.write_text('#!/bin/sh\n[ "$1" = new-session ] && exec sh -c "$5"\n')
    python = tmp_path / "ti_flax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # The first time it is told to run again.
    python.write_text(
        "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"
        "[ -e ../again ] || { touch ../again; exit 75; }\n"
    )
    for program in (tmux, python):
        program.chmod(0o755)
    (tmp_path / "run").mkdir()
    env = {**os.environ, "PATH": machine.path}
    subprocess.run(["sh", "-c", start], cwd=tmp_path, env=env, check=True)
    words = [
        *("-m", "ti_flax.train", "--config", "config.yaml"),
        *("--placeholder_token", "<my cat's>", "--seed", "3"),
        *("--train_data_dir", "my cat's pictures", "--output_dir", "cat"),
        *("--resume_from_checkpoint", "latest"),
    ]
    assert (tmp_path / "run" / "log").read_text().splitlines() == words * 2
    assert (tmp_path / "run" / "exit_code").read_text() == "0\n"


def test_a_tpu_that_is_there_is_used(machine, job):
    machine.install("gcloud", rules=[[STATE, [READY]], [STATUS, [ENDED]]])
    ran = machine.run("tpu_vm.sh", "run", "cat-1", *job)
    assert ran.returncode == 0
    verbs = [call[4] for call in machine.calls()]
    assert "create" not in verbs and "delete" not in verbs


@pytest.mark.parametrize("waiting", [False, True], ids=["new", "from before"])
def test_a_place_in_the_queue_is_waited_for(waiting, machine, job):
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    states = [(0, f"{state}\n", "") for state in ("WAITING_FOR_RESOURCES", "ACTIVE")]
    if not waiting:
        states.insert(0, GONE)
    machine.install(
        "gcloud",
        rules=[
            [STATE, [GONE, READY]],
            ["queued-resources describe", states],
            [STATUS, [ENDED]],
        ],
    )
    ran = machine.run("tpu_vm.sh", "run", "cat-1", "--queued", "--delete", *job)
    assert ran.returncode == 0, ran.stderr
    describe = [*queue, "describe", "cat-1", "--format=value(state.state)", ZONE]
    create = [
        *(*queue, "create", "cat-1", "--node-id=cat-1"),
        "--accelerator-type=v5litepod-4",
        *("--runtime-version=v2-alpha-tpuv5-lite", ZONE),
    ]
    assert [call for call in machine.calls() if call[:4] == queue] == [
        describe,
        *([] if waiting else [create, describe]),
        describe,
        [*queue, "delete", "cat-1", "--force", "--quiet", ZONE],
    ]


def test_a_pod_is_a_slice_whose_hosts_all_do_the_same(machine, job):
    machine.install("gcloud", rules=[[STATE, [GONE, READY]], [STATUS, [ENDED]]])
    ran = machine.run("tpu_pod.sh", "run", "cat-1", "--project", "my-project", *job)
    assert ran.returncode == 0, ran.stderr
    calls = machine.calls()
    assert calls[1] == tpu(
        "create",
        "--accelerator-type=v5litepod-16",
        "--version=v2-alpha-tpuv5-lite",
        ZONE,
        "--project=my-project",
    )
    told = [call for call in calls if "ssh" in call or "scp" in call]
    assert [call[-3] for call in told].count("--worker=0") == 1  # the result
    for call in told:
        assert call[-2:] == [ZONE, "--project=my-project"]
        reads = STATUS in " ".join(call) or "cat-1:run/cat" in call
        assert ("--worker=0" if reads else "--worker=all") in call


def test_a_preempted_tpu_is_made_anew_with_what_was_fetched(machine, job):
    lost = (255, "", "ssh: connect to host 10.0.0.1: Connection refused\n")
    running = (0, "step 1\n\nexit:\n", "")
    machine.install(
        "gcloud",
        rules=[
            # gone, made; then lost while training, found preempted twice; made again
            [STATE, [GONE, READY, PREEMPTED, PREEMPTED, READY]],
            [STATUS, [running, lost, ENDED]],
        ],
    )
    (machine.folder / "out put" / "cat").mkdir(parents=True)
    ran = machine.run("tpu_vm.sh", "run", "cat-1", "--spot", *job)
    assert ran.returncode == 0, ran.stderr
    calls = machine.calls()
    create = [*CREATE, "--spot", ZONE]
    assert calls.count(create) == 2
    first, second = (i for i, call in enumerate(calls) if call == create)
    assert tpu("delete", "--quiet", ZONE) in calls[first:second]
    upload = [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse", "out put/cat"),
        *("cat-1:run/", "--worker=all", ZONE),
    ]
    assert upload in calls[second:]
    assert "cat-1 was preempted; making it anew (1 of 20)" in ran.stderr
    assert "resume_from_checkpoint" in scripts_of(calls)[-2]


def test_training_that_fails_gives_its_code(machine, job):
    mistake = (0, "error: unknown key\n\nexit:2\n", "")
    machine.install("gcloud", rules=[[STATE, [READY]], [STATUS, [mistake]]])
    ran = machine.run("tpu_vm.sh", "run", "cat-1", *job)
    assert ran.returncode == 2
    assert "error: unknown key" in ran.stdout
    assert ran.stderr.splitlines()[-1].startswith(
        "error: the training ended with code 2"
    )


BAD = {
    "quota": (
        "ERROR: (gcloud) Quota limit 'TPUV5sLitepodPerProject' has been exceeded.\n",
        "error: quota refused: ERROR: (gcloud) Quota limit",
    ),
    "capacity": (
        'ERROR: (gcloud) There is no more capacity in the zone "us-west4-a"\n',
        "error: no v5litepod-4 free in us-west4-a",
    ),
    "other": (
        "ERROR: (gcloud) billing\n",
        "error: gcloud could not create cat-1: ERROR",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tpu_that_is_refused_is_told_in_one_line(case, machine, job):
    said, expected = BAD[case]
    rules = [[STATE, [GONE]], ["tpu-vm create", [(1, "", said)]]]
    machine.install("gcloud", rules=rules)
    ran = machine.run("tpu_vm.sh", "run", "cat-1", *job)
    assert ran.returncode in (1, 2)
    assert ran.stderr.splitlines()[-1].startswith(expected)


@pytest.mark.parametrize("queued", [True, False])
def test_a_tpu_preempted_while_it_is_made_is_tried_again(queued, machine, job):
    refused = (1, "", "ERROR: (gcloud) the node was preempted\n")
    rules = [
        [STATE, [GONE] if queued else [GONE, PREEMPTED, PREEMPTED]],
        ["tpu-vm create", [refused, (0, "", "")]],
        ["queued-resources describe", [GONE, (0, "SUSPENDED\n", "")] * 2],
    ]
    machine.install("gcloud", rules=rules)
    options = ["--attempts", "2", *(["--queued"] if queued else [])]
    ran = machine.run("tpu_vm.sh", "run", "cat-1", "--spot", *options, *job)
    assert ran.returncode == 75
    assert ran.stderr.splitlines()[-1].startswith("error: cat-1 was preempted 2 times")
    kind = "queued-resources" if queued else "tpu-vm"
    verbs = [call[4] for call in machine.calls() if call[3] == kind]
    assert verbs.count("create") == 2 and verbs.count("delete") == 1 + queued


@pytest.mark.parametrize(
    ("script", "program"),
    [("tpu_vm.sh", "gcloud"), ("gke.sh", "kubectl"), ("skypilot.sh", "sky")],
)
def test_a_program_that_is_missing_is_named(script, program, machine):
    for name in ("bash", "sed", "dirname", "env"):
        (machine.bin / name).symlink_to(shutil.which(name))
    zone = ["--zone", "z"] if script == "tpu_vm.sh" else []
    ran = machine.run(script, "delete", "cat-1", *zone, PATH=str(machine.bin))
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: {program} is not installed; ")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("tpu_vm.sh", ["fly"], "expected run, log, fetch or delete, found 'fly'"),
        ("tpu_vm.sh", ["run"], "expected the name of the TPU after 'run'"),
        ("tpu_vm.sh", ["run", "a"], "--zone is missing"),
        ("tpu_vm.sh", ["run", "a", "--zone"], "--zone needs a value"),
        ("tpu_vm.sh", ["run", "a", "--seed", "1"], "unknown option '--seed'"),
        ("tpu_vm.sh", ["run", "a", "--zone", "z"], "--output is missing"),
        ("gke.sh", ["run", "My Cat"], "expected a name of small letters"),
        ("gke.sh", ["run", "cat", "--image", "i"], "--bucket is missing"),
        ("skypilot.sh", ["run", "a", "--bucket", "gs://pics"], "--data is missing"),
    ],
)
def test_a_mistake_is_told_in_one_line(script, arguments, expected, machine):
    machine.install("gcloud", "kubectl", "sky")
    ran = machine.run(script, *arguments)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: {expected}")
    assert machine.calls() == []


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
@pytest.mark.parametrize("queued", [[], ["--queued"]])
def test_a_dry_run_prints_and_runs_nothing(script, queued, machine, job):
    machine.install("gcloud")
    ran = machine.run(script, "run", "cat-1", "--dry_run", *queued, *job)
    assert ran.returncode == 0, ran.stderr
    assert machine.calls() == []
    verbs = {call[4] for call in printed(ran.stderr) if call[0] == "gcloud"}
    assert verbs == {"describe", "create", "scp", "ssh"}
    assert not (machine.folder / "out put").exists()


# This machine


def test_local_installs_for_what_the_machine_has(machine):
    copied = machine.folder / "clone" / "launch"
    copied.mkdir(parents=True)
    for name in ("local.sh", "shell.sh"):
        shutil.copy(LAUNCH / name, copied)
    root = copied.parent
    for program, extra in ((None, ""), ("nvidia-smi", "[cuda]")):
        if program:
            machine.install(program)
        ran = machine.run(
            copied / "local.sh", "--dry_run", "--seed", "1", PYTHON=sys.executable
        )
        assert ran.returncode == 0, ran.stderr
        python = f"{root}/.venv/bin/python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        assert printed(ran.stderr) == [
            [sys.executable, "-m", "venv", f"{root}/.venv"],
            [*pip, f"{root}{extra}"],
            [python, "-m", "ti_flax.train", "--seed", "1"],
        ]
    assert not (root / ".venv").exists()


def test_local_tells_of_a_python_that_is_too_old(machine):
    old = machine.bin / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    copied = machine.folder / "clone" / "launch"
    copied.mkdir(parents=True)
    for name in ("local.sh", "shell.sh"):
        shutil.copy(LAUNCH / name, copied)
    ran = machine.run(copied / "local.sh", PYTHON="python3")
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: python3 is not Python 3.11 or newer; set PYTHON to one that is\n"
    )


@pytest.mark.slow  # installs JAX and compiles the quickstart: a minute and a half
def test_local_trains_in_a_fresh_clone(machine):
    clone = machine.folder / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    arguments = ["--config", "configs/quickstart.yaml", "--max_train_steps", "2"]
    for again in (False, True):
        ran = subprocess.run(
            [clone / "launch" / "local.sh", *arguments, "--validation_steps", "2"],
            cwd=clone,
            env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert ("-m venv" in ran.stderr) != again  # set up once
    assert (clone / "output/quickstart/learned_embeds.safetensors").exists()


# GKE


TRAINING = ["--pretrained_model_name_or_path", "m", "--seed", "3"]
TRAINING += ["--placeholder_token", '<my cat\'s: "1">']


def gke(machine, *options, name="cat-1", training=TRAINING, **env):
    machine.install("kubectl")
    return machine.run(
        *("gke.sh", "run", name, "--image", "reg/ti_flax:tpu", "--bucket", "pics"),
        *(*options, "--", *training),
        **env,
    )


def applied(machine):
    """The JobSet that kubectl got."""
    ((command, manifest),) = machine.calls(with_stdin=True)
    assert command == ["kubectl", "apply", "--filename", "-"]
    return yaml.safe_load(manifest)


def pod_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def test_a_jobset_is_applied_followed_and_deleted(machine):
    ran = gke(machine, "--spot", "--hosts", "4", "--topology", "4x4")
    assert ran.returncode == 0, ran.stderr
    jobset = applied(machine)
    assert jobset["metadata"] == {"name": "cat-1", "labels": {}}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == [
        *("--compilation_cache_dir", "/bucket/cache/jax", *TRAINING),
        *("--train_batch_size", "16"),  # 4 hosts of 4 chips
        *("--train_data_dir", "/bucket/cat-1/pictures"),
        *("--output_dir", "/bucket/cat-1/output", "--resume_from_checkpoint", "latest"),
    ]
    assert machine.run("gke.sh", "log", "cat-1").returncode == 0
    assert machine.run("gke.sh", "delete", "cat-1").returncode == 0
    selector = (
        "jobset.sigs.k8s.io/jobset-name=cat-1,"
        "batch.kubernetes.io/job-completion-index=0"
    )
    assert machine.calls()[1:] == [
        ["kubectl", "logs", "--follow", "--tail=-1", "--selector", selector],
        ["kubectl", "delete", "jobset", "cat-1", "--ignore-not-found"],
    ]


def test_jobsets_on_slices_of_one_host_share_a_list(machine):
    machine.install("kubectl")
    words = ["run", "w", "--image", "i", "--bucket", "pics", "--parts", "3"]
    training = ["--pretrained_model_name_or_path", "m", "--slots", "4"]
    ran = machine.run("gke.sh", *words, "--", *training)
    assert ran.returncode == 0, ran.stderr
    calls = machine.calls(with_stdin=True)
    assert len(calls) == 3
    for part, (_, manifest) in enumerate(calls):
        jobset = yaml.safe_load(manifest)
        assert jobset["metadata"]["name"] == f"w-{part}"
        job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert job["completions"] == 1
        pod = job["template"]["spec"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2"
        assert pod["containers"][0]["args"] == [
            *("--compilation_cache_dir", "/bucket/cache/jax", *training),
            *("--concepts", "/bucket/w/pictures"),
            *("--part", f"{part}/3", "--output_dir", "/bucket/w/output"),
            *("--resume_from_checkpoint", "latest"),
        ]
    ran = machine.run("gke.sh", *words, "--hosts", "2")
    assert ran.returncode == 2 and "--hosts: expected 1 with --parts" in ran.stderr


def test_the_jobset_runs_again_after_75_and_not_after_2(machine):
    gke(machine)
    jobset = yaml.safe_load(machine.calls(with_stdin=True)[0][1])
    again, mistake = jobset["spec"]["failurePolicy"]["rules"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    codes = replicated["template"]["spec"]["podFailurePolicy"]["rules"][1][
        "onExitCodes"
    ]
    assert codes["values"] == [2, 75]
    # What Kubernetes says (pkg/controller/job/pod_failure_policy.go)
    text = "Container train for pod a/b failed with exit code {} matching FailJob rule"
    for code, rule in ((75, again), (2, mistake)):
        for other, applies in ((again, rule is again), (mistake, rule is mistake)):
            patterns = other["onJobFailureMessagePatterns"]
            found = any(re.search(p, text.format(code)) for p in patterns)
            assert found == applies
    assert again["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert mistake["action"] == "FailJobSet"


def test_the_job_in_the_jobset_fits_the_schema_of_kubernetes(machine):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    options = ("--queue", "q", "--service_account", "s", "--hub_token_secret", "hub")
    ran = gke(machine, "--spot", *options, "--cpu", "24", "--memory", "64Gi")
    assert ran.returncode == 0, ran.stderr
    jobset = applied(machine)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": jobset["metadata"],
        **replicated["template"],
    }
    kubernetes_validate.validate(job, "1.32", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["argument"] = "unknown"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.32", strict=True)


def test_what_a_jobset_is_given_stands_where_kubernetes_looks(machine):
    options = ("--queue", "tpus", "--service_account", "trainer")
    options += ("--hub_token_secret", "hub", "--cpu", "24", "--memory", "64Gi")
    assert gke(machine, *options).returncode == 0
    jobset = applied(machine)
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    pod = pod_of(jobset)
    assert pod["serviceAccountName"] == "trainer"
    (container,) = pod["containers"]
    assert container["resources"] == {
        "requests": {"google.com/tpu": "4", "cpu": "24", "memory": "64Gi"},
        "limits": {"google.com/tpu": "4"},
    }
    env = {each.pop("name"): each for each in container["env"]}
    secret = {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}
    assert env["HF_TOKEN"] == {"valueFrom": secret}


def test_a_bucket_keeps_what_later_runs_need(machine):
    """Of the Hub its files alone: a token or Xet's own cache stay on the machine."""
    assert gke(machine).returncode == 0
    pod = pod_of(applied(machine))
    assert "serviceAccountName" not in pod
    (container,) = pod["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    # As a client of its own resolves them.
    asked = "from huggingface_hub import constants as c; "
    asked += "print(c.HF_HUB_CACHE, c.HF_TOKEN_PATH, c.HF_XET_CACHE, sep='\\n')"
    for given in (env, sky["envs"]):
        given = {k: v for k, v in given.items() if k.startswith("HF_")}
        outer = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        ran = subprocess.run(
            [sys.executable, "-c", asked],
            env={**outer, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        hub, *others = ran.stdout.split()
        assert hub == "/bucket/cache/hub"
        assert not any(path.startswith("/bucket") for path in others)
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"] == {
        "bucketName": "pics",
        "mountOptions": "implicit-dirs",  # as gcloud storage cp leaves them
    }


def test_a_name_of_a_jobset_is_as_long_as_its_pods_may_be(machine):
    """JobSet's webhook: NAME-train-0-HOST and -abcde, 63 at most (RFC 1035)."""
    hosts = ["--hosts", "16", "--topology", "8x8"]
    parts = ["--parts", "11"]
    for options, added in (
        ([], "-train-0-1-abcde"),
        (hosts, "-train-0-15-abcde"),
        (parts, "-10-train-0-0-abcde"),
    ):
        longest = "n" * (63 - len(added))
        # The keys are not what is tested.
        assert gke(machine, *options, name=longest, PYTHON="false").returncode == 0
        ran = gke(machine, *options, name=longest + "n")
        expected = f"expected a name of at most {len(longest)} characters, found"
        assert_told(ran, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--topology", "4x4"], "--topology: expected the 8 chips of --hosts 2 with"),
        (["--topology", "8"], "--topology: expected a shape such as 2x4, found '8'"),
        (["--image", "my image"], "--image: expected REGISTRY/NAME:TAG, found"),
        (["--accelerator", "TPU"], "--accelerator: expected at most 63 small"),
        (["--queue", "a_b"], "--queue: expected at most 63 small letters"),
        (["--queue", "q" * 64], "--queue: expected at most 63 small letters"),
        (["--service_account", "a..b"], "--service_account: expected at most 253"),
        (["--hub_token_secret", "hf_x"], "--hub_token_secret: expected at most 253"),
        (["--memory", "64GB"], "--memory: expected a quantity such as 64Gi, found"),
        (["--cpu", "many"], "--cpu: expected a quantity such as 24, found 'many'"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_what_a_cluster_would_refuse_is_refused_before(
    dry_run, options, expected, machine
):
    assert_told(gke(machine, *dry_run, *options), expected)
    assert machine.calls() == []


# https://cloud.google.com/storage/docs/buckets#naming
BUCKETS = ["my-travel-maps", "0f75d593-8e7b_x", "abc", "example.com", "b" * 63]
BUCKETS += [".".join(["b" * 63] * 3), "192.168.5.4a"]
NO_BUCKETS = ["ab", "Bucket", "b" * 64, "a..b", ".ab", "ab-", "_ab", "a b", "gs://b"]
NO_BUCKETS += ["192.168.5.4", "goog-x", "my-g00gle", ".".join(["b" * 60] * 4), "ü-ber"]


def test_names_of_buckets_are_googles():
    """Only those, in any locale of the terminal."""
    words = 'for each; do (check_bucket "$each") 2>/dev/null && echo "$each"; done'
    for locale in ("C", "C.UTF-8", "en_US.UTF-8"):
        ran = subprocess.run(
            ["bash", "-c", f". launch/shell.sh; {words}", "-", *BUCKETS, *NO_BUCKETS],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": locale},
        )
        assert ran.stdout.split("\n")[:-1] == BUCKETS


# The keys of the training

MISTAKES = {
    "a value": (["--config", "cat_toy", "--learning_rate", "x"], "learning_rate: exp"),
    "a key": (["--config", "cat_toy", "--learning_rat", "1"], "unknown flag"),
    "a recipe": (["--config", "cat_to"], "config: expected a file, or a recipe of"),
    "a file": (["--config", "configs/cat.yaml"], "cannot read configs/cat.yaml: No"),
    "missing": (["--seed", "1"], "required but missing: pretrained_model_name_or"),
    "another's": (["--config", str(ROOT / "configs/cat_toy.yaml")], "--config: exp"),
    "left out": (["--config", "output/cat.yaml"], "--config: expected a file of"),
    "devices": (["--config", "cat_toy", "--fsdp", "3"], "fsdp: expected a divisor of"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_keys_is_told_before_anything_is_made(case, machine):
    training, expected = MISTAKES[case]
    assert_told(gke(machine, "--dry_run", training=training), expected)
    assert machine.calls() == []


@pytest.mark.parametrize("case", ["a value", "devices"])
def test_skypilot_is_not_asked_for_what_has_a_mistake(case, machine):
    training, expected = MISTAKES[case]
    machine.install("sky")
    words = ["--bucket", "gs://pics", "--data", ".", "--gpus", "A100:8"]
    ran = machine.run("skypilot.sh", "run", "cat-1", *words, "--", *training)
    assert_told(ran, expected)
    assert machine.calls() == []


def assert_told(ran, expected):
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: {expected}")


def test_a_list_with_a_mistake_is_told_before_anything_is_made(machine):
    machine.install("sky")
    (machine.folder / "words").mkdir()
    ran = machine.run(
        *("skypilot.sh", "run", "w", "--bucket", "gs://pics", "--parts", "2"),
        *("--data", "words", "--", "--config", "cat_toy"),
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "expected a folder of pictures for each concept, found none" in line
    assert machine.calls() == []


def test_keys_that_cannot_be_checked_here_are_said_to_be_so(machine):
    """A laptop has no ti_flax; a file may be in the bucket."""
    machine.install("kubectl")
    python = machine.bin / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    # Without the .venv that launch/local.sh makes.
    clone = machine.folder / "clone"
    for name in ("launch", "configs", "ti_flax/config/recipes"):
        shutil.copytree(ROOT / name, clone / name)
    gke = clone / "launch" / "gke.sh"
    words = ["run", "cat-1", "--image", "i", "--bucket", "pics", "--", "--config"]
    ran = machine.run(gke, *words, "cat_toy", PYTHON="python3")
    assert ran.returncode == 0
    assert ran.stderr.startswith("not checked here: the keys of the training; launch/")
    missing = machine.run(gke, *words, "configs/cat.yaml", PYTHON="python3")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: --config: no file 'configs/cat.yaml' in ")
    ran = machine.run(gke, *words, "/bucket/cat.yaml")
    assert ran.returncode == 0
    assert ran.stderr.startswith("not checked here: /bucket/cat.yaml and the keys")
    assert len(machine.calls()) == 2


# SkyPilot


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["1cat", "--bucket", "gs://pics"], "expected a name of letters, digits"),
        (["cat", "--bucket", "pics"], "--bucket: expected gs://NAME, found 'pics'"),
        (["cat", "--bucket", "gs://P"], "--bucket: expected 3 to 63 of a-z"),
        (["cat", "--secret", "A=secret"], "--secret: expected the name of a variable"),
        (["cat", "--secret", "UNSET_X"], "--secret: UNSET_X is not set here; export"),
    ],
)
def test_what_skypilot_would_refuse_is_refused_before(words, expected, machine):
    machine.install("sky")
    ran = machine.run("skypilot.sh", "run", *words, "--dry_run")
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: {expected}") and "secret " not in line
    assert machine.calls() == []


def test_a_managed_job_gets_secrets_by_name_and_what_its_machine_has(machine):
    machine.install("sky")
    options = ["--secret", "HF_TOKEN", "--cpus", "8+", "--memory", "64+"]
    options += ["--gpus", "A100:1", "--bucket", "gs://pics/words", "--data", "."]
    words = ["run", "cat-1", *options, "--", *WORD]
    ran = machine.run("skypilot.sh", *words, HF_TOKEN="hf_private")
    assert ran.returncode == 0, ran.stderr
    (call,) = machine.calls()
    at = call.index("--detach-run") + 1
    assert call[at : at + 8] == [
        *("--secret", "HF_TOKEN", "--cpus", "8+", "--memory", "64+"),
        *("--gpus", "A100:1"),
    ]
    assert "hf_private" not in ran.stderr + " ".join(call)


def test_a_managed_job_is_launched_followed_and_cancelled(machine):
    machine.install("sky")
    (machine.folder / "my cat's pictures").mkdir()
    ran = machine.run(
        *("skypilot.sh", "run", "cat-1", "--bucket", "gs://pics", "--gpus", "A100:1"),
        *("--data", "my cat's pictures", "--", *WORD),
    )
    assert ran.returncode == 0, ran.stderr
    assert machine.run("skypilot.sh", "log", "cat-1").returncode == 0
    assert machine.run("skypilot.sh", "delete", "cat-1").returncode == 0
    data = machine.folder / "my cat's pictures"
    launch, *others = machine.calls()
    quoted = launch[-2].removeprefix("ARGUMENTS=")
    assert shlex.split(quoted) == WORD
    assert launch == [
        *("sky", "jobs", "launch", "--name", "cat-1", "--yes", "--detach-run"),
        *("--gpus", "A100:1", "--env", "RUN=cat-1", "--env", "BUCKET=gs://pics"),
        *("--env", f"DATA={data}", "--env", "KEY=train_data_dir"),
        *("--env", f"ARGUMENTS={quoted}", "launch/skypilot.yaml"),
    ]
    assert others == [
        ["sky", "jobs", "logs", "--name", "cat-1"],
        ["sky", "jobs", "cancel", "--name", "cat-1", "--yes"],
    ]


def test_what_skypilot_runs_keeps_the_words(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    script = task["run"].replace("/bucket", str(tmp_path / "the bucket"))
    env = {"ARGUMENTS": "--placeholder_token \\<my\\ cat\\'s\\>", "RUN": "cat 1"}
    env["KEY"] = task["envs"]["KEY"]
    ran = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [
        *("-m", "ti_flax.train"),
        *("--compilation_cache_dir", f"{tmp_path}/the bucket/cache/jax"),
        *("--placeholder_token", "<my cat's>"),
        *("--train_data_dir", "/tmp/pictures"),
        *("--output_dir", f"{tmp_path}/the bucket/cat 1/output"),
        *("--resume_from_checkpoint", "latest"),
    ]


def test_jobs_of_skypilot_share_a_list(machine):
    machine.install("sky")
    (machine.folder / "words" / "cat").mkdir(parents=True)
    training = ["--pretrained_model_name_or_path", "m", "--slots", "4"]
    ran = machine.run(
        *("skypilot.sh", "run", "w", "--bucket", "gs://pics", "--parts", "2"),
        *("--data", "words", "--", *training),
    )
    assert ran.returncode == 0, ran.stderr
    for part, call in enumerate(machine.calls()):
        assert call[4] == f"w-{part}"
        given = dict(word.split("=", 1) for word in call if "=" in word)
        assert (given["RUN"], given["KEY"]) == ("w", "concepts")
        # No batch: that of all slots is shared out.
        assert given["ARGUMENTS"].split() == [*training, "--part", f"{part}/2"]
    assert part == 1


def test_the_task_fits_the_schema_of_skypilot(monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    found = importlib.util.find_spec("sky")
    if found is None:
        pytest.skip("skypilot is not installed")
    # Its schema alone: the package around it wants a hundred others.
    names = [name for name in sys.modules if name.split(".")[0] == "sky"]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("sky")
    package.__path__ = [str(Path(found.origin).parent)]
    package.__version__ = package.__commit__ = "0"
    monkeypatch.setitem(sys.modules, "sky", package)
    autostop = types.ModuleType("sky.skylet.autostop_lib")
    autostop.AutostopWaitFor = types.SimpleNamespace(supported_modes=list)
    monkeypatch.setitem(sys.modules, "sky.skylet.autostop_lib", autostop)
    schemas = importlib.import_module("sky.utils.schemas")
    monkeypatch.setattr(schemas, "_task_config_schema", dict)
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())
    with pytest.raises(jsonschema.ValidationError):
        wrong = task["resources"] | {"job_recovery": {"max_restarts_on_errors": "many"}}
        jsonschema.validate(wrong, schemas.get_resources_schema())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


# The batch


@pytest.mark.parametrize(
    ("devices", "words", "expected"),
    [
        (1, [], ""),
        (4, [], ""),
        (8, [], "--train_batch_size 8"),
        (16, ["--seed", "3"], "--train_batch_size 16"),
        (3, [], "--train_batch_size 6"),
        (8, ["--config", "configs/quickstart.yaml"], ""),
        (16, ["--config=configs/quickstart.yaml"], "--train_batch_size 16"),
        (3, ["--config", "configs/quickstart.yaml"], "--train_batch_size 9"),
        (8, ["--config", "configs/cat_toy.yaml"], "--train_batch_size 8"),
        (8, ["--config", "only/in/the/image.yaml"], "--train_batch_size 8"),
        (8, ["--config", "cat_toy"], "--train_batch_size 8"),
        (4, ["--config", "sdxl"], ""),
    ],
)
def test_a_batch_is_raised_to_what_uses_every_device(devices, words, expected):
    ran = batch_for(devices, words)
    assert (ran.stdout, ran.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (4, "warning: train_batch_size 4 on 8 devices takes as long as 8\n"),
        (9, "warning: train_batch_size 9 on 8 devices takes as long as 16\n"),
        (16, ""),
    ],
)
def test_who_gives_a_batch_gets_it(batch, told):
    for words in (["--train_batch_size", str(batch)], [f"--train_batch_size={batch}"]):
        ran = batch_for(8, words)
        assert (ran.stdout, ran.stderr) == ("", told)


def batch_for(devices, words):
    script = '. launch/shell.sh; set -euo pipefail; batch_for "$@"'
    return subprocess.run(
        ["bash", "-c", script, "-", str(devices), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("accelerator", "batch"),
    [
        ("v5litepod-8", "8"),
        ("v6e-16", "16"),
        ("v2-8", "8"),  # eight cores, each a device
        ("v4-16", "8"),  # two cores are one
        ("v5p-8", None),
        ("v5litepod", None),
    ],
)
def test_a_tpu_gets_a_batch_for_its_devices(accelerator, batch, machine, job):
    machine.install("gcloud", rules=[[STATE, [READY]], [STATUS, [ENDED]]])
    kind = ["--accelerator", accelerator]
    assert machine.run("tpu_vm.sh", "run", "cat-1", *kind, *job).returncode == 0
    _, start, _ = scripts_of(machine.calls())
    found = re.search(r"train_batch_size\W+(\d+)", start)
    assert (found and found[1]) == batch


def test_the_pod_of_16_chips_gets_a_batch_of_16(machine, job):
    machine.install("gcloud", rules=[[STATE, [READY]], [STATUS, [ENDED]]])
    assert machine.run("tpu_pod.sh", "run", "cat-1", *job).returncode == 0
    assert re.search(r"train_batch_size\W+16\b", scripts_of(machine.calls())[1])


@pytest.mark.parametrize(
    ("gpus", "batch"),
    [
        ([], None),
        (["--gpus", "A100:8"], "8"),
        (["--gpus", "A100"], None),
        (["--gpus", "tpu-v6e-8"], "8"),
    ],
)
def test_a_managed_job_gets_a_batch_for_its_devices(gpus, batch, machine):
    machine.install("sky")
    words = ["--bucket", "s3://pics", "--data", ".", *gpus, "--", *WORD]
    assert machine.run("skypilot.sh", "run", "cat-1", *words).returncode == 0
    found = re.search(r"train_batch_size (\d+)", " ".join(machine.calls()[0]))
    assert (found and found[1]) == batch


# Lists of concepts


@pytest.fixture
def launch(tmp_path):
    """launch/concepts.py in an empty folder, with a training that notes its words."""
    package = tmp_path / "ti_flax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        """
import json, os, signal, sys, time
if "--wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open("waits", "w")
    time.sleep(60)
print(json.dumps(sys.argv[1:]))
sys.exit(int(os.environ.get("CODE", 0)))
"""
    )

    def run(*arguments, wait=True, **env):
        command = [sys.executable, LAUNCH / "concepts.py", *arguments]
        started = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return started
        out, err = started.communicate(timeout=60)
        return subprocess.CompletedProcess(command, started.returncode, out, err)

    return run


LIST = ["my list.yaml", "--output", "o"]


@pytest.mark.parametrize(
    ("words", "env", "part"),
    [
        ([], {}, "0/1"),
        (["--job", "1", "--jobs", "3"], {}, "1/3"),
        (
            [],
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_MIN": "4",
                "SLURM_ARRAY_TASK_COUNT": "5",
            },
            "2/5",
        ),
    ],
)
def test_a_job_trains_its_part_of_the_list(words, env, part, launch):
    training = ["--config", "c.yaml", "--validation_prompt", "a {}", "-- b"]
    ran = launch(*LIST, *words, "--", *training, CODE="2", **env)
    assert ran.returncode == 2, ran.stderr
    assert json.loads(ran.stdout) == [
        *training,
        *("--concepts=my list.yaml", "--output_dir=o", f"--part={part}"),
    ]


def test_a_signal_to_a_job_reaches_the_training(launch, tmp_path):
    process = launch(*LIST, "--", "--wait", wait=False)
    for _ in range(600):
        if (tmp_path / "waits").exists():
            break
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def entry(state, steps=3, **changes):
    line = {"config": "c", "slots": 2, "state": state, "steps": steps}
    line |= {"seconds": 2.0, "first_fixed_loss": 0.5, "fixed_loss": 0.25, "reason": ""}
    return line | changes


def test_the_summary_is_of_all_jobs(launch, tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()

    def write(name, **concepts):
        content = {"words_per_hour": None, "concepts": concepts}
        (folder / name).write_text(json.dumps(content))

    assert launch("--output", "o", "--summary").returncode == 75
    absent = launch("--output", "absent", "--summary")
    assert absent.returncode == 2
    assert absent.stderr == "error: --output: expected a folder, found absent\n"
    write("concepts-0-of-2.json", a=entry("done"), c=entry("training", fixed_loss=None))
    write("concepts-1-of-2.json", b=entry("failed", reason="no luck"))
    ran = launch("--output", "o", "--summary")
    assert ran.returncode == 75
    assert ran.stdout == (folder / "summary.tsv").read_text()
    assert [line.split("\t") for line in ran.stdout.splitlines()] == [
        ["concept", "state", "steps", "fixed_loss", "seconds", "reason"],
        ["a", "done", "3", "0.2500", "2", ""],
        ["b", "failed", "3", "0.2500", "2", "no luck"],
        ["c", "training", "3", "", "2", ""],
    ]
    # What another number of jobs has done meanwhile.
    write("concepts.json", a=entry("waiting"), c=entry("done"))
    assert launch("--output", "o", "--summary").returncode == 2
    write("concepts-1-of-2.json", b=entry("done"))
    assert launch("--output", "o", "--summary").returncode == 0


def test_a_job_without_a_list_is_told(launch):
    ran = launch("--output", "o")
    assert ran.returncode == 2 and "expected LIST, or --summary" in ran.stderr


def test_the_summary_reads_what_runs_write(launch, tmp_path, tiny_model):
    path = many.write_list(tmp_path)
    asked = many.load(tiny_model, path, tmp_path / "o", part="0/2")
    ledger.Ledger(asked).fail(asked.concepts[0], "no luck")
    ran = launch("--output", "o", "--summary")
    assert ran.returncode == 75
    states = [line.split("\t")[:2] for line in ran.stdout.splitlines()[1:]]
    assert states == [["bird", "waiting"], ["cat", "failed"], ["frog", "waiting"]]
