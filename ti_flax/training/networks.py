"""The networks of a run, as its keys and the memory of its devices want them."""

from jax.sharding import Mesh

from ti_flax.config import run_config
from ti_flax.models import attention, base_model
from ti_flax.models.opening import Choices
from ti_flax.step.remat import fit_text


def open_networks(
    config: run_config.Config, mesh: Mesh, download_weights: bool = True
) -> base_model.BaseModel:
    """The model of a run on these devices; no weights are read yet.

    Raises `UserError` as `base_model.open_model` does, and where the resolution does
    not suit the model.
    """
    platform = mesh.devices.flat[0].platform
    model = base_model.open_model(
        config.pretrained_model_name_or_path,
        config.revision,
        config.variant,
        base_model.denoiser_dtype(config.mixed_precision, platform),
        attention.make_plan(config.attention, mesh),
        download_weights=download_weights,
        choices=Choices.of(config),
    )
    side = model.family.latent_side(config.resolution)
    return model._replace(family=fit_text(model.family, side**2, mesh))
