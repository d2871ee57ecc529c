"""Uploads what a run left to the Hub."""

from pathlib import Path
from typing import Unpack

from pydantic import BaseModel, Field

from ti_flax.config import validation
from ti_flax.config.fields import FilePath, OptionalName, Secret, Settings
from ti_flax.config.signatures import PushSettings, with_keys_of
from ti_flax.hub import upload
from ti_flax.publishing import concept_folder
from ti_flax.runtime import errors

USAGE = "DIR [--hub_model_id NAME] [--hub_private_repo]"


class PushKeys(Settings):
    """What to upload, and where."""

    folder: FilePath = Field(description="folder that a run wrote (its output_dir)")
    hub_model_id: OptionalName = Field(
        None, description="repository, owner/name or name; none: the folder's name"
    )
    hub_private_repo: bool = Field(
        False, description="make the repository private, if it is new"
    )
    hub_token: Secret = Field(
        None,
        description="better HF_TOKEN or `hf auth login`: other users of this machine "
        "can see a command line",
    )


GROUPS: dict[str, type[BaseModel]] = {"Upload": PushKeys}


@with_keys_of(PushKeys, PushSettings)
def push_to_hub(**settings: Unpack[PushSettings]) -> str:
    """Uploads a concept's files and returns the repository's address.

    As in `push_to_hub(folder="output/cat", hub_model_id="me/cat")`. Nothing else in
    the folder is uploaded: no checkpoint, no sample, no configuration with this
    machine's paths.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(PushKeys, settings, "with --key value")
    folder: Path = checked.folder
    if not folder.is_dir():
        raise errors.UserError(f"{folder} is no folder; give a run's output_dir")
    return upload.push(
        folder,
        concept_folder.concept_files(folder),
        checked.hub_model_id or folder.resolve().name,
        checked.hub_private_repo,
        checked.hub_token.get_secret_value() if checked.hub_token else None,
    )
