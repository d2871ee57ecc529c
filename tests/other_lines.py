"""Lines of docs/troubleshooting.md that need more than a wrong command line.

Each function makes its mistake in the program's own code, with what is outside it (a
device, a network, a disk, other processes) played, and gives the line.
"""

import errno
import os
import shutil
import time
from pathlib import Path

import filelock
import huggingface_hub
import jax
import numpy as np
import pytest
import slots

from ti_flax.checkpoints.folder_lock import FolderLock
from ti_flax.config import concepts, run_config, run_keys
from ti_flax.hub import upload
from ti_flax.models import base_model
from ti_flax.publishing import full_pipeline, own_files, results
from ti_flax.runtime import errors, hosts, jax_settings, log, peers
from ti_flax.step import dispatch
from ti_flax.text.embedding import Embedding
from ti_flax.training import job

ADDRESS = "10.0.0.1:1234"


def refused(call, *arguments) -> str:
    with pytest.raises(errors.UserError) as told:
        call(*arguments)
    return str(told.value)


# The machine and the processes of a job


def absent_device(folder: Path, patch: pytest.MonkeyPatch) -> str:
    def fail():
        raise RuntimeError(
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use "
            "by process with pid 4242."
        )

    patch.setattr(jax, "devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu")
    try:
        return refused(jax_settings.require_devices)
    finally:
        jax.config.update("jax_platforms", before)


def list_of_several(folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Two processes of a machine that are given the same list."""
    patch.setattr(hosts, "has_tpu", lambda: False)
    patch.setenv("SLURM_STEP_NODELIST", "host-a")
    patch.setenv("SLURM_NTASKS", "2")
    return refused(job.train, _list(folder))


def list_of_a_slice(folder: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(hosts, "has_tpu", lambda: True)
    patch.setenv("TPU_WORKER_HOSTNAMES", "host-a,host-b")
    return refused(job.train, _list(folder))


def _list(folder: Path) -> concepts.Many:
    (folder / "list.yaml").write_text("cat: {placeholder_token: <cat>}\n")
    keys = {"pretrained_model_name_or_path": "m", "train_data_dir": str(folder)}
    keys |= {"concepts": str(folder / "list.yaml")}
    asked = concepts.load([f"--{key}={value}" for key, value in keys.items()])
    assert isinstance(asked, concepts.Many)
    return asked


def step_too_large(folder: Path, patch: pytest.MonkeyPatch) -> str:
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: CompileTimeHbmOom")

    step = dispatch.TrainSteps(refuse, None, jax.devices()[0])
    return refused(step, *slots.make_arguments(), 1)


def meet(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Waits for processes that do not come."""

    def initialize(*_, **__):
        time.sleep(seconds)

    patch.setattr(jax.distributed, "initialize", initialize)
    job = run_keys.HostKeys(num_processes=2, process_id=1, coordinator_address=ADDRESS)
    hosts._initialize(job.model_copy(update={"initialization_timeout": 0.3}))


def processes_that_do_not_meet(folder: Path, patch: pytest.MonkeyPatch) -> str:
    told = []
    patch.setattr(peers, "exit_now", lambda message, code: told.append((message, code)))
    meet(patch, 1.0)
    [(line, code)] = told
    assert code == errors.AGAIN_EXIT_CODE
    return line.replace("0.3 s", "300 s")


def killed_process(folder: Path, patch: pytest.MonkeyPatch) -> str:
    return peers._lost(1, "host-b")


# What a run leaves, and uploads


def full_disk(folder: Path, patch: pytest.MonkeyPatch) -> str:
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "out"))

    patch.setattr(full_pipeline, "write", fail)
    config = run_config.Config(
        pretrained_model_name_or_path="m",
        train_data_dir="d",
        placeholder_token="<toy>",
        output_dir=folder / "out",
        save_as_full_pipeline=True,
    )
    learned = Embedding("<toy>", {"text_encoder": np.ones((1, 4), np.float32)})
    unread = base_model.BaseModel._make([None] * len(base_model.BaseModel._fields))
    return refused(results.finish, config, unread, {}, learned)


def link_to_be_uploaded(folder: Path, patch: pytest.MonkeyPatch) -> str:
    path = folder / "concept_images" / "9.jpeg"
    path.parent.mkdir()
    path.symlink_to("/etc/passwd")
    return refused(own_files.check, folder, path)


def text_as_a_picture(folder: Path, patch: pytest.MonkeyPatch) -> str:
    path = folder / "9.jpeg"
    path.write_text("root:x:0:0")
    return refused(own_files.check, folder, path)


def no_token(folder: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(huggingface_hub, "get_token", lambda: None)
    return refused(upload.find_token, None)


def no_network(folder: Path, patch: pytest.MonkeyPatch) -> str:
    def fail(*_, **__):
        raise ConnectionError("Connection refused")

    patch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    patch.setattr(upload, "_WAITS", ())
    return refused(upload.push, folder / "out", [], "me/word", False, "hf_secret")


# As the page names it -> makes the line; what is refused.
REFUSED = {
    "a device that is not there": absent_device,
    "processes that do not meet": processes_that_do_not_meet,
    "a process of the job that was killed": killed_process,
    "several processes with one list": list_of_several,
    "several hosts of a TPU slice with one list": list_of_a_slice,
    "a step that does not fit": step_too_large,
    "a disk that is full when the whole pipeline is written": full_disk,
    "a link in a folder to be uploaded": link_to_be_uploaded,
    "a file that is not what its name says": text_as_a_picture,
    "no token for the Hub": no_token,
    "an upload that fails": no_network,
}


def settings_of_jax(folder: Path, patch: pytest.MonkeyPatch) -> str:
    jax.config.update("jax_random_seed_offset", 7)
    try:
        with log.heard_warnings() as heard, jax_settings.fixed():
            pass
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    [line] = heard
    return line


def wait_for_others(folder: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(hosts, "_PATIENT_SECONDS", 0.01)
    with log.heard_warnings() as heard:
        meet(patch, 0.2)
    [line] = heard
    return line.replace("0.3 s", "300 s")


def folder_without_locks(folder: Path, patch: pytest.MonkeyPatch) -> str:
    def fail(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr(filelock.FileLock, "acquire", fail)
    with log.heard_warnings() as heard:
        FolderLock(folder / "out", "output_dir").take()
    shutil.rmtree(folder / "out")
    [line] = heard
    return line


# What is told while a run goes on.
NOTICED = {
    "settings of JAX": settings_of_jax,
    "processes that are late": wait_for_others,
    "a folder without locks": folder_without_locks,
}
