"""How other programs load an embedding file, stated anew from their rules.

Where a program's own loader can be installed, tests call that instead. Each function
takes the file and returns the rows that the program would use, by text encoder.
"""

import base64
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

Rows = dict[str, np.ndarray]


def automatic1111(file: Path, width: int) -> Rows:
    """modules/textual_inversion: by suffix, then by the keys; one word a file."""
    import torch

    suffix = file.suffix.lower()
    if suffix == ".png":
        data = automatic1111_chunk(file)
    elif suffix in (".bin", ".pt"):
        data = torch.load(file, map_location="cpu", weights_only=True)
    elif suffix == ".safetensors":
        data = safetensors.numpy.load_file(file)
    else:
        raise ValueError(f"{suffix} is skipped")
    if "string_to_param" in data:
        parameters = data["string_to_param"]
        parameters = getattr(parameters, "_parameters", parameters)
        rows = next(iter(parameters.values())).detach()
        assert len(parameters) == 1
    elif "clip_g" in data and "clip_l" in data:
        return {name: np.asarray(rows) for name, rows in data.items()}
    else:
        (rows,) = data.values()
    rows = np.atleast_2d(np.asarray(rows)).astype(np.float32)
    # An embedding of another width is skipped without a word.
    assert rows.shape[1] == width
    return {"clip_l": rows}


def automatic1111_chunk(file: Path) -> dict:
    """The JSON of the text chunk."""
    import torch
    from PIL import Image

    with Image.open(file) as image:
        text = base64.b64decode(image.text["sd-ti-embedding"])

    def tensor(value: dict) -> object:
        if "TORCHTENSOR" not in value:
            return value
        return torch.from_numpy(np.array(value["TORCHTENSOR"]))

    return json.loads(text, object_hook=tensor)


def comfyui(file: Path, encoder: str, width: int) -> np.ndarray:
    """comfy/sd1_clip.py, load_embed: what one text encoder gets of a file."""
    import torch

    if file.suffix == ".safetensors":
        data = safetensors.numpy.load_file(file)
    else:
        data = torch.load(file, map_location="cpu", weights_only=True)
    bundled = [
        rows
        for key, rows in data.items()
        if key.startswith("bundle_emb.") and key.endswith(f".{encoder}")
    ]
    if "string_to_param" in data:
        rows = next(iter(data["string_to_param"].values()))
    elif encoder in data:
        rows = data[encoder]
    elif bundled:
        rows = np.concatenate(bundled)
    else:
        rows = next(iter(data.values()))
    rows = np.atleast_2d(np.asarray(rows))
    # Another width is ignored with a warning.
    assert rows.shape[1] == width
    return rows


def invokeai(file: Path) -> Rows:
    """What its probe of the base model and then its loader make of a file."""
    import torch

    if file.suffix == ".safetensors":
        data = safetensors.numpy.load_file(file)
    else:
        data = torch.load(file, map_location="cpu", weights_only=True)
    if "string_to_token" in data:
        (first, *_) = data["string_to_param"].values()
        probed = first.shape[-1]
    elif "emb_params" in data:
        probed = data["emb_params"].shape[-1]
    elif "clip_g" in data:
        probed = data["clip_g"].shape[-1]
    else:
        # Of diffusers' file it takes the first axis, and so knows only flat ones.
        probed = next(iter(data.values())).shape[0]
    assert probed in (768, 1024, 1280), f"unrecognized token dimension {probed}"
    if "string_to_param" in data:
        rows = next(iter(data["string_to_param"].values()))
    elif "emb_params" in data:
        rows = data["emb_params"]
    elif "clip_g" in data and "clip_l" in data:
        return {"clip_l": data["clip_l"], "clip_g": data["clip_g"]}
    else:
        rows = next(iter(data.values()))
    return {"clip_l": np.atleast_2d(np.asarray(rows))}


def kohya(file: Path) -> np.ndarray:
    """sd-scripts, train_textual_inversion.py --weights: the first tensor of a dict."""
    import torch

    if file.suffix == ".safetensors":
        data = safetensors.numpy.load_file(file)
    else:
        data = torch.load(file, map_location="cpu", weights_only=True)
    data = data.get("string_to_param", data)
    return np.atleast_2d(np.asarray(next(iter(data.values()))))


def kohya_sdxl(file: Path) -> Rows:
    """sd-scripts, sdxl_train_textual_inversion.py --weights."""
    data = safetensors.numpy.load_file(file)
    return {"clip_l": data["clip_l"], "clip_g": data["clip_g"]}


def onetrainer(file: Path) -> np.ndarray:
    """StableDiffusionEmbeddingLoader: AUTOMATIC1111's .pt, else one key."""
    import torch

    if file.suffix == ".pt":
        data = torch.load(file, weights_only=True)
        return np.asarray(data["string_to_param"]["*"])
    return safetensors.numpy.load_file(file)["emp_params"]


def rinongal(file: Path) -> Rows:
    """ldm/modules/embedding_manager.py, load: the file's dict becomes the module's."""
    import torch

    class Manager(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.string_to_param_dict = torch.nn.ParameterDict()

    manager = Manager()
    # Its code is older than weights_only, and a ParameterDict is not on torch's list.
    data = torch.load(file, map_location="cpu", weights_only=False)
    # It compares them with a prompt's ids, on the prompt's device.
    assert all(
        number.to("cpu").dim() == 0 for number in data["string_to_token"].values()
    )
    manager.string_to_param_dict = data["string_to_param"]
    assert list(manager.parameters())
    assert data["string_to_token"].keys() == manager.string_to_param_dict.keys()
    return {
        token: rows.detach().numpy()
        for token, rows in manager.string_to_param_dict.items()
    }


def replicate(file: Path) -> tuple[Rows, dict[str, str]]:
    """cog-sdxl: rows by the number of the text encoder, and the prompt's shorthand."""
    tensors = safetensors.numpy.load_file(file)
    shorthand = json.loads(file.with_name("special_params.json").read_text())
    names = ("clip_l", "clip_g")
    rows = {names[int(key[-1])]: tensor for key, tensor in tensors.items()}
    assert set(tensors) <= {"text_encoders_0", "text_encoders_1"}
    return rows, shorthand


def flax_script(file: Path) -> dict[str, np.ndarray]:
    """What the script saved, by the only call that opens it."""
    return np.load(file, allow_pickle=True).item()
