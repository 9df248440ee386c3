"""A directory in Hugging Face's format, as far as its config.json says. Free of torch: a job can be refused before it costs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.hf.config import facts, from_config
from workers.hf.errors import PretrainedMismatch, PretrainedUnreadable
from workers.model.spec import ModelSpec

CONFIG = "config.json"


def require_model(directory: Path, spec: ModelSpec) -> None:
    """Raises PretrainedUnreadable (no such directory, no config.json) and PretrainedMismatch (another model than ``spec``)."""
    theirs, _ = from_config(read_config(directory))
    require_same_model(directory, theirs, spec)


def read_config(directory: Path) -> dict[str, Any]:
    """Raises PretrainedUnreadable: there is no such directory, or no config.json that is one."""
    if not directory.is_dir():
        raise PretrainedUnreadable(f"{directory} is no directory; init_from names one with config.json and model.safetensors")
    return read_json(directory / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping. Raises PretrainedUnreadable."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PretrainedUnreadable(f"{path} is missing; init_from names a directory that `save_pretrained` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedUnreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PretrainedUnreadable(f"{path} holds no mapping")
    return content


def require_same_model(directory: Path, theirs: ModelSpec, ours: ModelSpec) -> None:
    """Patterns of attention and the memory of segments need no weights: the job's own word stands."""
    there, here = facts(theirs), facts(ours)
    if there["rope_scaling"] == here["rope_scaling"] and ours.max_position_embeddings > theirs.max_position_embeddings:
        # Rows longer than it was made for, with nothing that stretches its positions.
        there = there | {"max_position_embeddings": theirs.max_position_embeddings}
        here = here | {"max_position_embeddings": ours.max_position_embeddings}
    if there["rope_scaling"] is None:
        # Who stretches the context of a model that was trained without does it on purpose: None is what the field begins with.
        here = here | {"rope_scaling": None}
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing:
        says = ", ".join(f"{name} {_shown(there, name)} there, {_shown(here, name)} in model" for name in differing)
        raise PretrainedMismatch(f"{directory} is another model than this job's: {says}", pointer=f"/model/{differing[0]}")


def _shown(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name, "none")
    if isinstance(value, tuple) and len(set(value)) == 1:
        return str(value[0])
    return str(value)
