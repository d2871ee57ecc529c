"""Every key of a run: its type, default, unit, limits and nature.

`training_keys` has those of the optimizer, of computing and of the output.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from ti_flax.config.bucket_keys import BucketKeys
from ti_flax.config.caption_keys import CaptionKeys
from ti_flax.config.checkpoint_keys import CheckpointKeys
from ti_flax.config.fields import (
    LARGEST_SIDE,
    MOST_DEVICES,
    MOST_STEPS,
    Count,
    FilePath,
    Name,
    NameOrPath,
    OptionalFilePath,
    OptionalInteger,
    OptionalName,
    OptionalNameOrPath,
    Revision,
    Secret,
    Settings,
    Side,
    Texts,
    Variant,
)
from ti_flax.config.mask_keys import MaskKeys
from ti_flax.config.natures import FREE, KEPT, NOTED, TRAVELS
from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.config.presets import PRESETS
from ti_flax.config.start_keys import StartKeys
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.config.subsets import Subset, Subsets, subset_of
from ti_flax.config.training_keys import ComputeKeys, OptimizerKeys, OutputKeys


class ModelKeys(Settings):
    """The frozen model."""

    preset: Annotated[Literal["diffusers", "paper"] | None, FREE] = Field(
        None,
        description="defaults of another trainer for the keys that are not set: "
        + "; ".join(
            f"{name} has {', '.join(f'{key} {value}' for key, value in keys.items())}"
            for name, keys in PRESETS.items()
        ),
    )
    pretrained_model_name_or_path: Annotated[NameOrPath, FREE] = Field(
        description="Stable Diffusion 1.x or 2.x, or SDXL: a folder in diffusers' "
        "layout, a Hub repository, or one file (.safetensors, .ckpt)"
    )
    revision: Annotated[Revision, NOTED] = None
    variant: Annotated[Variant, NOTED] = None
    tokenizer_name: Annotated[OptionalNameOrPath, FREE] = Field(
        None, description="folder or Hub repository of a tokenizer of its own"
    )


class ConceptKeys(Settings):
    """What is learned."""

    train_data_dir: Annotated[FilePath, FREE] = Field(
        description="folder with the concept's pictures; those in a sub-folder N_NAME "
        "count N times"
    )
    subsets: Annotated[Subsets, FREE] = Field(
        (),
        description="sub-folders of train_data_dir to read in place of all that is in "
        "it, PATH or N:PATH, whose pictures count N times",
    )
    placeholder_token: Annotated[Name, KEPT] = Field(
        description="the new word, one that the vocabulary lacks, such as <cat-toy>"
    )
    num_vectors: Annotated[Count, TRAVELS] = Field(
        1, le=75, description="vectors to learn; each takes one token of the prompt"
    )
    learnable_property: Annotated[Literal["object", "style"], TRAVELS] = Field(
        "object", description="what the pictures share; selects the prompt templates"
    )
    template_file: Annotated[OptionalFilePath, FREE] = Field(
        None,
        description="text file of prompt templates, one a line, each with one {} or "
        "[name], and [filewords] where a picture's caption goes; in place of the "
        "built-in ones",
    )

    @property
    def folders(self) -> tuple[Subset, ...]:
        """What `subsets` says."""
        return tuple(map(subset_of, self.subsets))


class DataKeys(Settings):
    """How pictures are read."""

    resolution: Annotated[Side, TRAVELS] = Field(
        512,
        multiple_of=8,
        le=LARGEST_SIDE,
        description="width and height of the pictures in pixels",
    )
    center_crop: Annotated[bool, TRAVELS] = Field(
        True,
        description="cut the middle square out of a picture; false squashes the whole "
        "picture into a square, as diffusers does",
    )
    random_flip: Annotated[bool, TRAVELS] = Field(
        True, description="mirror half of the pictures, drawn at random"
    )


class ReportKeys(Settings):
    """What a run shows of itself."""

    validation_prompt: Annotated[Texts, FREE] = Field(
        (),
        description="prompts with the new word to make previews of, as samples/ and in "
        "report.html; empty: no previews",
    )
    num_validation_images: Annotated[Count, FREE] = Field(
        4, le=64, description="previews of each prompt, with seeds seed, seed + 1, ..."
    )
    validation_control: Annotated[bool, FREE] = Field(
        False,
        description="once make the same previews with the new word left out of the "
        "prompts",
    )
    validation_steps: Annotated[Count, FREE] = Field(
        100,
        le=MOST_STEPS,
        description="steps of the optimizer between validations: previews, the "
        "loss on a fixed set, nearest words, report.html",
    )
    report_to: Annotated[Literal["tensorboard", "wandb", "all", "none"], FREE] = Field(
        "tensorboard",
        description="where numbers and pictures go beside report.html; all: to each of "
        "them that is installed",
    )
    logging_dir: Annotated[FilePath, FREE] = Field(
        Path("logs"), description="folder for report_to, inside output_dir"
    )


class ResultKeys(Settings):
    """What a run leaves, and for whom."""

    save_as_full_pipeline: Annotated[bool, FREE] = Field(
        False,
        description="also write the base model with the word in it, a folder that "
        "diffusers loads with no further step (gigabytes for a full-size model)",
    )
    words_total_limit: Annotated[OptionalInteger, FREE] = Field(
        None,
        ge=0,
        le=10**6,
        description="files in words/, the vectors at each validation, that are kept, "
        "the newest; none: all",
    )
    license: Annotated[OptionalName, FREE] = Field(
        None,
        description="licence of the concept for its README.md, as the Hub calls it, "
        "such as mit or other",
    )
    push_to_hub: Annotated[bool, FREE] = Field(
        False, description="upload the concept's own files to the Hub after the run"
    )
    hub_model_id: Annotated[OptionalName, FREE] = Field(
        None, description="repository, owner/name or name; none: the name of output_dir"
    )
    hub_private_repo: Annotated[bool, FREE] = Field(
        False, description="make the repository private, if it is new"
    )
    hub_token: Annotated[Secret, FREE] = Field(
        None,
        description="better HF_TOKEN or `hf auth login`: other users of this machine "
        "can see a command line; never written or printed",
    )


class HostKeys(Settings):
    """The devices, and the processes that train together, one a host."""

    fsdp: Annotated[Count, FREE] = Field(
        1,
        le=MOST_DEVICES,
        description="devices that hold the frozen weights together, for a model that "
        "does not fit one; must divide the number of devices",
    )
    # Each host has its own, or none in the next run: not kept in config.yaml.
    coordinator_address: Annotated[OptionalName, FREE] = Field(
        None,
        exclude=True,
        description="HOST:PORT of process 0, for every process of a job on several "
        "hosts; TPU pods, GKE and SLURM are found without",
    )
    num_processes: Annotated[OptionalInteger, FREE] = Field(
        None,
        ge=1,
        exclude=True,
        le=MOST_DEVICES,
        description="processes of the job, with coordinator_address",
    )
    process_id: Annotated[OptionalInteger, FREE] = Field(
        None,
        ge=0,
        exclude=True,
        lt=MOST_DEVICES,
        description="number of this process, from 0",
    )
    initialization_timeout: Annotated[Count, FREE] = Field(
        300,
        le=604800,
        description="seconds to wait for the other processes at the start",
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> "HostKeys":
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if self.num_processes == 1:
            return self
        if None in given and given != (None, None, None):
            raise ValueError(
                "expected coordinator_address, num_processes and process_id together, "
                f"found {given[0]!r}, {given[1]} and {given[2]}"
            )
        if self.coordinator_address is not None:
            host, _, port = self.coordinator_address.rpartition(":")
            if not (host and port.isdigit()):
                raise ValueError(
                    "expected coordinator_address as HOST:PORT, found "
                    f"{self.coordinator_address!r}"
                )
            if self.process_id >= self.num_processes:
                raise ValueError(
                    "expected process_id < num_processes, found "
                    f"{self.process_id} >= {self.num_processes}"
                )
        return self


# Title in --help and in a dumped YAML -> its keys.
GROUPS: dict[str, type[BaseModel]] = {
    "Model": ModelKeys,
    "Checkpoint": CheckpointKeys,
    "Concept": ConceptKeys,
    "Start": StartKeys,
    "Data": DataKeys,
    "Buckets and crops": BucketKeys,
    "Captions": CaptionKeys,
    "Masks": MaskKeys,
    "Training": OptimizerKeys,
    "Loss and noise": ObjectiveKeys,
    "Stopping": StoppingKeys,
    "Computing": ComputeKeys,
    "Output": OutputKeys,
    "Report": ReportKeys,
    "Result": ResultKeys,
    "Devices and hosts": HostKeys,
}
