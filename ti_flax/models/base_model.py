"""Stable Diffusion folders and Hub repositories, in diffusers' layout, to Flax params.

Tensors go from safetensors to the device one at a time, so that loading needs little
more memory than the params themselves. Torch is not needed.
"""

import concurrent.futures
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.tree_util import DictKey
from jax.typing import DTypeLike

from ti_flax.hub import ids
from ti_flax.models import attention, clip_text, unet, vae
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, one_line

Params = dict[str, Any]
# Where a weight of a given shape lies.
Layout = Callable[[tuple[int, ...]], jax.sharding.Sharding]

_STEMS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# Modules that PyTorch keeps in a list; their index is a level of its own in the key.
_LISTS = (
    "attentions|down_blocks|downsamplers|layers|net|resnets|to_out|transformer_blocks"
    "|up_blocks|upsamplers"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TEXTS = ("json", "txt")
# The text encoder's keys have it in all files before transformers 5.6.
_TEXT_PREFIX = "text_model."
# In files of old transformers; the positions are 0, 1, 2... in every model.
_BUFFERS = {"embeddings.position_ids"}
# VAE attention before diffusers 0.12 had names of its own.
_OLD_VAE_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


class BaseModel(NamedTuple):
    """A frozen Stable Diffusion: its modules, which hold no arrays, and its folder.

    `scheduler` is the content of scheduler_config.json; `sample_size` is the side of
    the square latents that the UNet was trained on.
    """

    folder: Path
    variant: str | None
    text_encoder: clip_text.ClipText
    unet: unet.UNet
    vae: vae.Vae
    scheduler: Mapping[str, Any]
    sample_size: int

    def load(
        self, component: str, sharding: jax.sharding.Sharding | Layout | None = None
    ) -> Params:
        """The params of `text_encoder`, `unet` or `vae`, placed as `sharding` says.

        Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
        """
        module = getattr(self, component)
        return load_params(self.folder / component, module, self.variant, sharding)

    def fingerprint(self) -> str:
        """SHA-256 over configurations and weight files, in hexadecimal."""
        paths = [self.folder / "scheduler" / "scheduler_config.json"]
        for name in _STEMS:
            folder = self.folder / name
            paths += [folder / "config.json", *weight_files(folder, self.variant)]

        def digest(path: Path) -> bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        # hashlib lets other threads run: gigabytes take seconds.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(digest, paths))).hexdigest()


def unet_dtype(mixed_precision: str, platform: str | None = None) -> DTypeLike:
    """What `mixed_precision` (auto, no, bf16) makes of the UNet on `platform`, by
    default this machine's."""
    if mixed_precision == "auto":
        # XLA's CPU backend computes bfloat16 no faster than float32.
        on_cpu = (platform or jax.default_backend()) == "cpu"
        mixed_precision = "no" if on_cpu else "bf16"
    return {"no": jnp.float32, "bf16": jnp.bfloat16}[mixed_precision]


def open_model(
    name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
    download_weights: bool = True,
) -> BaseModel:
    """Opens a diffusers folder or a Hub repository id; no weights are read yet.

    The UNet will be held and computed in `dtype`, its attention as `plan` says; text
    encoder and VAE in float32. Without `download_weights` a Hub repository is asked
    for its configuration only.

    Raises `UserError` when a file is missing or the model is of another family.
    """
    folder = find_folder(name_or_path, revision, variant, download_weights)
    configs = {name: _read_json(folder / name / "config.json") for name in _STEMS}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    return BaseModel(
        folder,
        variant,
        **make_modules(configs, dtype, plan),
        scheduler=scheduler,
        # 64 is the side in Stable Diffusion 1.x, whose oldest files lack it.
        sample_size=configs["unet"].get("sample_size") or 64,
    )


def find_folder(
    name_or_path: str,
    revision: str | None,
    variant: str | None,
    download_weights: bool = True,
) -> Path:
    """The local folder of a model, downloaded from the Hub when it is a repository id.

    Only the files that training and generating read are downloaded; what the cache
    holds is not fetched again, and without a network the cache alone serves.
    """
    suffix = f".{variant}" if variant else ""
    patterns = ["model_index.json", "scheduler/*.json", "tokenizer/*"]
    for component, stem in _STEMS.items():
        patterns.append(f"{component}/config.json")
        if not download_weights:
            continue
        patterns += [
            f"{component}/{stem}{suffix}.safetensors",
            f"{component}/{stem}.safetensors.index{suffix}.json",
            f"{component}/{stem}{suffix}-*-of-*.safetensors",
        ]
    return _local_folder(
        "pretrained_model_name_or_path", name_or_path, revision, patterns
    )


def find_tokenizer(name_or_path: str, revision: str | None) -> Path:
    """The tokenizer's folder in a model's folder or repository, or one by itself."""
    patterns = [f"{folder}*.{end}" for folder in ("", "tokenizer/") for end in _TEXTS]
    folder = _local_folder("tokenizer_name", name_or_path, revision, patterns)
    nested = folder / "tokenizer"
    return nested if nested.is_dir() else folder


def _local_folder(
    key: str, name_or_path: str, revision: str | None, patterns: list[str]
) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not ids.is_repository(name_or_path):
        raise UserError(
            f"{key}: no folder {name_or_path!r}, and it is no Hub repository id "
            "(owner/name); give one of the two"
        )
    # Slow to import, and not needed for a local folder.
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name_or_path, revision=revision, allow_patterns=patterns
            )
        )
    except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError) as error:
        reason = one_line(error)
        raise UserError(
            f"{key}: cannot fetch {name_or_path!r} from the Hub ({reason}); check the "
            "name, the network and your access, or give a folder"
        ) from error


def make_modules(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> dict[str, nn.Module]:
    """The networks that the configurations describe; they must fit one another."""

    def parse(component: str, config_class: type) -> Any:
        try:
            return config_class.from_json(configs[component])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{component}: config.json is incomplete or damaged ({error!r}); "
                "download the model again"
            ) from error

    text = clip_text.ClipText(parse("text_encoder", clip_text.ClipTextConfig))
    net = unet.UNet(parse("unet", unet.UNetConfig), dtype, plan)
    auto = vae.Vae(parse("vae", vae.VaeConfig))
    if net.config.cross_attention_dim != text.config.hidden_size:
        raise UserError(
            f"the unet's cross_attention_dim {net.config.cross_attention_dim} is not "
            f"the text encoder's hidden_size {text.config.hidden_size}; use the "
            "folders of one model"
        )
    if net.config.in_channels != auto.config.latent_channels:
        raise UserError(
            f"the unet takes {net.config.in_channels} channels, the vae makes "
            f"{auto.config.latent_channels}; inpainting and depth models are not "
            "supported, use a text-to-image model"
        )
    return {"text_encoder": text, "unet": net, "vae": auto}


def param_shapes(module: nn.Module) -> Params:
    """Shape and dtype of every parameter of a network, nothing allocated."""
    match module:
        case clip_text.ClipText(config=config):
            rows = jnp.zeros((1, 0, config.hidden_size))
            inputs = jnp.zeros((1, config.max_position_embeddings), jnp.int32), rows
        case unet.UNet(config=config):
            side = 2 ** len(config.block_out_channels)
            inputs = (
                jnp.zeros((1, side, side, config.in_channels)),
                jnp.zeros((1,), jnp.int32),
                jnp.zeros((1, 1, config.cross_attention_dim)),
            )
        case vae.Vae(config=config):
            side = 2 * config.downscale
            inputs = (jnp.zeros((1, side, side, config.in_channels)),)
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load_params(
    folder: Path,
    module: nn.Module,
    variant: str | None = None,
    sharding: jax.sharding.Sharding | Layout | None = None,
) -> Params:
    """The params of one network from the safetensors files of its folder.

    Each tensor is read once; of one that is split over hosts, each places its shards.

    Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
    """
    shapes = param_shapes(module)
    sources = _match(folder.name, weight_files(folder, variant), shapes)

    def load(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        file, key = sources[torch_key(path)]
        with safetensors.safe_open(file, framework="numpy") as tensors:
            array = tensors.get_tensor(key).transpose(_from_torch(path, leaf))
        array = np.ascontiguousarray(array, leaf.dtype)
        if sharding is None:
            return jax.device_put(array)
        # device_put would compare the values of all hosts over the network.
        return jax.make_array_from_callback(
            array.shape,
            sharding(array.shape) if callable(sharding) else sharding,
            lambda index: array[index],
        )

    return jax.tree_util.tree_map_with_path(load, shapes)


def save_params(
    folder: Path, config: Mapping[str, Any], params: Params, dtype: DTypeLike
) -> None:
    """Writes config.json and safetensors as diffusers and transformers would."""
    prefix = _TEXT_PREFIX if folder.name == "text_encoder" else ""
    tensors = {
        prefix + torch_key(path): np.ascontiguousarray(
            np.asarray(leaf).transpose(np.argsort(_from_torch(path, leaf))), dtype
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    atomic.write_json(folder / "config.json", config)
    with atomic.atomic_path(folder / f"{_STEMS[folder.name]}.safetensors") as path:
        # transformers refuses a file that does not say which framework wrote it.
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def torch_key(path: tuple[DictKey, ...]) -> str:
    """The PyTorch key of a Flax parameter, without the text encoder's prefix."""
    *modules, leaf = (entry.key for entry in path)
    levels = [re.sub(rf"^({_LISTS})_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*levels, _LEAVES.get(leaf, leaf)])


def _from_torch(path: tuple[DictKey, ...], leaf: Any) -> tuple[int, ...]:
    """The axes that turn a PyTorch tensor into this leaf: OIHW to HWIO, OI to IO."""
    if path[-1].key != "kernel":
        return tuple(range(len(leaf.shape)))
    return {4: (2, 3, 1, 0), 2: (1, 0)}[len(leaf.shape)]


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one network: a single one, or those of an index."""
    stem, suffix = _STEMS[folder.name], f".{variant}" if variant else ""
    single = folder / f"{stem}{suffix}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    if index.is_file():
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {index.name} names {', '.join(missing)}, which are not "
                "there; download the model again"
            )
        return [folder / shard for shard in shards]
    found = sorted(path.name for path in folder.glob(f"{stem}*"))
    raise UserError(
        f"{folder}: expected {single.name}, found {', '.join(found) or 'no weights'}; "
        "give a folder or a revision with safetensors, and `variant` as its files say"
    )


def _match(
    component: str, weight_files: list[Path], shapes: Params
) -> dict[str, tuple[Path, str]]:
    """Where each wanted PyTorch key is: the file and the key that it has there."""
    wanted = {
        torch_key(path): tuple(leaf.shape[axis] for axis in axes)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        for axes in [np.argsort(_from_torch(path, leaf))]
    }
    sources: dict[str, tuple[Path, str]] = {}
    faults: dict[str, list[str]] = {"unknown": [], "doubled": [], "misshapen": []}
    for file in weight_files:
        with _open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118, not a dictionary
                name = _modern_key(component, key)
                if name in _BUFFERS:
                    continue
                if name not in wanted:
                    faults["unknown"].append(key)
                    continue
                if name in sources:
                    faults["doubled"].append(key)
                sources[name] = file, key
                shape = tuple(tensors.get_slice(key).get_shape())
                if shape != wanted[name]:
                    faults["misshapen"].append(
                        f"{key} {list(shape)} instead of {list(wanted[name])}"
                    )
    faults["missing"] = [name for name in wanted if name not in sources]
    listed = [
        f"{len(keys)} {fault}: {', '.join(keys)}"
        for fault, keys in faults.items()
        if keys
    ]
    if listed:
        raise UserError(
            f"{component}: the weights do not fit config.json ({'; '.join(listed)}); "
            "use the two files of one model"
        )
    return sources


def _modern_key(component: str, key: str) -> str:
    """The key as the newest diffusers and transformers write it, without prefix."""
    if component == "text_encoder":
        return key.removeprefix(_TEXT_PREFIX)
    if component == "vae" and ".attentions." in key:
        for old, new in _OLD_VAE_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected a safetensors file, found one that cannot be read "
            f"({one_line(error)}); download it again"
        ) from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; expected a Stable Diffusion model in diffusers' "
            "layout (text_encoder, unet, vae, scheduler, tokenizer)"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable JSON ({one_line(error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a JSON object, found a {type(content).__name__}; "
            "download it again"
        )
    return content
