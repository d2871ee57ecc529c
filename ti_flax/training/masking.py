"""The masks of a run's pictures, as its keys say."""

import logging

from ti_flax.config import run_config
from ti_flax.data import masks
from ti_flax.data.folder import Pictures
from ti_flax.runtime.errors import UserError, listed

_log = logging.getLogger(__name__)


def read_masks(
    config: run_config.Config, pictures: Pictures
) -> list[masks.Masks] | None:
    """The masks of each picture's crops; None where none are asked for.

    Says which pictures have none, and that masks are there that nobody asked for.

    Raises:
        UserError: no picture has a mask, or one cannot be used.
    """
    folder, names = config.train_data_dir, pictures.names
    if not config.masked_loss:
        unread = masks.beside(folder, names)
        if unread:
            _log.warning(
                "train_data_dir: masks are there (%s) and are not read; masked_loss "
                "learns where they are white",
                listed(path.name for path in unread.values()),
            )
        return None
    source = masks.Source(config.alpha_mask, config.conditioning_data_dir)
    files = masks.files_of(source, folder, names)
    found = masks.read_masks(files, names, pictures.cuts, config.alpha_mask)
    if all(map(masks.is_white, found)):
        raise UserError(masks.NONE_FOUND)
    if without := masks.without_mask(names, found):
        _log.warning("masked_loss: no mask, or one all white: %s", without)
    return found
