"""Models by their id on a hub of Hugging Face: only the files needed, through huggingface_hub's cache."""

import re
from pathlib import Path

from model.checkpoints.files import LABELS, PICKLE, PICKLED_SHARDS, SAFETENSORS, SHARDS, CheckpointError

_ID = re.compile(r"(?:hf-hub:)?(?P<id>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", flags=re.ASCII)
"""`google/vit-base-patch16-224`, `hf-hub:timm/vit_tiny_patch16_224.augreg_in21k`, each with `@revision` or without."""

_FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    LABELS,
    SAFETENSORS,
    SHARDS,
    "model-*-of-*.safetensors",
]
_PICKLES = [PICKLE, PICKLED_SHARDS, "pytorch_model-*-of-*.bin"]
"""Weights of older models, instead of safetensors."""


def is_hub_id(model: str) -> bool:
    return _ID.fullmatch(model) is not None


def download(model: str) -> Path:
    """Return the directory of a model's files in the local cache; download them if they are not there yet.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.

    Raises:
        CheckpointError: there is no such model or revision, it asks for a token, or the hub cannot be reached and nothing is
            in the cache.
    """
    from huggingface_hub import errors, snapshot_download  # seconds to import, and most models are local

    match = _ID.fullmatch(model)
    if match is None:
        raise CheckpointError(f"{model} is neither a file, nor a directory, nor a hub id (owner/name)")
    try:
        directory = Path(snapshot_download(match["id"], revision=match["revision"], allow_patterns=_FILES))
        if not any((directory / name).exists() for name in (SAFETENSORS, SHARDS, "adapter_config.json")):
            snapshot_download(match["id"], revision=match["revision"], allow_patterns=_PICKLES)
        return directory
    except errors.GatedRepoError:
        raise CheckpointError(f"{model} asks for a token with access: set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{match['id']} has no revision {match['revision']}") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no {match['id']} on the hub, or it is private, and no such path here: check the name, or set HF_TOKEN"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no path {model} here, and as a hub id it is not in the cache, and {_why_not(error.__cause__)}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        raise CheckpointError(f"the hub answered {status} to {model}: check HF_TOKEN, or try again later") from error
    except RuntimeError as error:  # its cache is below a home directory, which this user has not
        raise CheckpointError(f"{model} cannot be downloaded: {error} Set HF_HOME to a directory for the cache") from error
    except (errors.HFValidationError, OSError) as error:
        raise CheckpointError(f"{model} cannot be downloaded: {type(error).__name__}") from error


def _why_not(cause: BaseException | None) -> str:
    """Return the reason why the hub did not help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub: check the path, or the name"
    if isinstance(cause, HfHubHTTPError):
        return f"the hub answered {getattr(cause.response, 'status_code', 'nothing')}: check the path, or try again later"
    return "the hub cannot be reached: check the path, or the name and the network"
