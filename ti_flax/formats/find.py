"""Finds and reads the embedding that a file, a folder or a Hub id names."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ti_flax.formats import registry, token_keyed
from ti_flax.hub import download
from ti_flax.hub.ids import parse
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

SAFETENSORS_NAME = "learned_embeds.safetensors"
BIN_NAME = "learned_embeds.bin"
# Rows of both of SDXL's text encoders in one file.
SDXL_NAME = "learned_embeds_sdxl.safetensors"


def load_embedding(name_or_path: Path | str, token: str | None = None) -> Embedding:
    """Reads an embedding from a file, a folder or a Hub repository, in any format.

    A folder or repository is read as diffusers does: learned_embeds.safetensors, else
    learned_embeds.bin, else its only embedding file. `sd-concepts-library/cat-toy` is a
    repository, `owner/name/file.safetensors` a file in one. Of a file with several
    words, `token` says which.

    Nothing in the file is executed.

    Raises:
        UserError: when there is no such file, it is damaged, its format is unknown, or
            its rows are not finite.
    """
    return registry.read(find_file(name_or_path), token).embedding


def load_for_model(
    name_or_path: Path | str,
    widths: Mapping[str, int],
    key: str,
    token: str | None = None,
) -> Embedding:
    """`load_embedding` for a model whose text encoders, by name, have these widths.

    Raises:
        UserError: beginning with `key`, when the rows are for another family.
    """
    learned = load_embedding(name_or_path, token)
    check_fits(learned, widths, key, name_or_path)
    return learned


def check_fits(
    learned: Embedding, widths: Mapping[str, int], key: str, name_or_path: Path | str
) -> None:
    """Raises `UserError` when rows are not for text encoders of these widths."""
    if learned.rows.keys() != widths.keys():
        raise UserError(
            f"{key}: {name_or_path} is for {learned.family}: it has rows for "
            f"{len(learned.rows)} text encoder(s), this model has {len(widths)}; use a "
            "model of the kind it was trained with"
        )
    if learned.widths != widths:
        raise UserError(
            f"{key}: {name_or_path} has rows of width {_listed(learned.widths)} "
            f"({learned.family}), the model's text encoder has width {_listed(widths)} "
            "(768 is Stable Diffusion 1.x, 1024 2.x, 1280 latent diffusion with BERT); "
            "use a model of the kind it was trained with"
        )


def _listed(widths: Mapping[str, int]) -> str:
    return " and ".join(str(widths[encoder]) for encoder in sorted(widths))


def find_all(
    names: Iterable[str],
) -> tuple[list[Path], list[UserError]]:
    """The files of all names, and of each name that has none what is wrong."""
    files: list[Path] = []
    wrong: list[UserError] = []
    for name in names:
        try:
            files += find_files(name)
        except UserError as error:
            wrong.append(error)
    return files, wrong


def find_files(name_or_path: Path | str) -> list[Path]:
    """The embedding of a file, of a run's folder or of a Hub id; or all of a folder.

    A folder that no run wrote has those at its top; where it has none, those of the
    runs' folders in it. Pictures are left out: most hold none.

    Raises:
        UserError: there is none.
    """
    folder = Path(name_or_path)
    if not folder.is_dir() or _of_run(folder):
        return [find_file(name_or_path)]
    inside = sorted(folder.iterdir())
    wanted = [*download.SUFFIXES]
    wanted.remove(".png")
    files = [path for path in inside if path.is_file() and path.suffix in wanted]
    files = [path for path in files if not token_keyed.is_second(path)]
    files = files or [found[0] for path in inside if (found := _of_run(path))]
    return files or [find_file(name_or_path)]


def _of_run(folder: Path) -> list[Path]:
    """What a run, or diffusers, left in a folder, the first to be read."""
    names = (SAFETENSORS_NAME, BIN_NAME)
    return [folder / name for name in names if (folder / name).is_file()]


def find_file(name_or_path: Path | str) -> Path:
    """The local file of an embedding, downloaded when it is in a Hub repository."""
    path = Path(name_or_path)
    named = parse(str(name_or_path))
    if named is not None and not path.exists():
        path = download.embedding(named)
    if not path.is_dir():
        return path
    if found := _of_run(path):
        return found[0]
    others = [file for file in path.iterdir() if file.suffix in download.SUFFIXES]
    if len(others) == 1:
        return others[0]
    raise UserError(
        f"{path} is a folder without an embedding: expected {SAFETENSORS_NAME} or "
        f"{BIN_NAME} in it, or a single file, found {len(others)}"
    )
