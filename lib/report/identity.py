"""What a model is, from the provenance of a result: told apart by weights and dtype, not by name."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lib.report import result_files
from lib.run.errors import UserError

GPT2_ON_THE_HUB = ("gpt2", "openai-community/gpt2")
GPT2_WEIGHTS = {  # sha256 of model.safetensors and pytorch_model.bin there
    "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421",
}


def of(provenance: dict[str, Any]) -> tuple[str, str | None]:
    """What tells the model of a result from others, hashable: weights and dtype.

    The same commit of the hub is the same model under an old id too (`gpt2`, `openai-community/gpt2`); the same files
    are the same model in another folder.
    """
    return repr(sorted(_telling(provenance).items())), provenance.get("dtype")


def _telling(provenance: dict[str, Any]) -> dict[str, Any]:
    """What of its model tells it from others."""
    source = dict(provenance["model"])
    for told_nothing in ("name", "type", "folder", "gguf", "nanogpt", "package"):
        source.pop(told_nothing, None)
    if "hub_id" in source:
        source["hub_id"] = PurePosixPath(source["hub_id"]).name.lower()
    return source


def of_each(provenances: Sequence[dict[str, Any]], courses: Sequence[bool]) -> list[tuple[str, str | None]]:
    """`of` each of these of one name; a course of training has the weights of the only model here that may be its."""
    every = [of(provenance) for provenance in provenances]
    told = list(zip(provenances, every, courses, strict=True))
    models = {weights: model for model, (weights, _dtype), is_course in told if not is_course}
    for i, (course, (_weights, dtype), is_course) in enumerate(told):
        able = [weights for weights, model in models.items() if is_course and may_lead_to(course, model)]
        if len(able) == 1:
            every[i] = able[0], dtype
    return every


def may_lead_to(course: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether a course of training, which has neither one revision nor one file of weights, may be that of a model:
    all else that tells its model from others is the same."""
    own = _telling(course)
    return bool(own) and own.items() <= _telling(model).items()


def described(provenance: dict[str, Any]) -> str:
    """`gpt2 (folder gpt2, weights 0123456789ab), float32`: in an error, what a model is."""
    source = provenance["model"]
    parts = [f"{key} {source[key]}" for key in ("hub_id", "folder", "gguf", "nanogpt", "package") if key in source]
    if "revision" in source:
        parts.append(f"revision {source['revision'][:12]}")
    hashes = [source["gguf_sha256"]] if "gguf_sha256" in source else [*source.get("weights_sha256", {}).values()]
    if "config_sha256" in source:
        parts.append(f"configuration {source['config_sha256'][:12]}")
    if hashes:
        parts.append(f"weights {' '.join(value[:12] for value in hashes[:2])}{' ...' * (len(hashes) > 2)}")
    return f"{source.get('name')} ({', '.join(parts)}), {provenance.get('dtype')}"


def is_gpt2(provenance: dict[str, Any]) -> bool:
    """Whether the weights are those of GPT-2 small: of its hub id, or files with their sha256."""
    source = provenance["model"]
    hashes = set(source.get("weights_sha256", {}).values())
    return source.get("hub_id") in GPT2_ON_THE_HUB or (bool(hashes) and hashes <= GPT2_WEIGHTS)


def _comparable(provenance: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """Without the configuration's hash, where an older file has none."""
    if "config_sha256" in older["model"]:
        return provenance
    source = {key: value for key, value in provenance["model"].items() if key != "config_sha256"}
    return provenance | {"model": source}


def require_same(path: Path, provenance: dict[str, Any]) -> None:
    """Raise UserError if `path` holds a result of another model, revision or dtype, which would be lost."""
    try:
        there = result_files.read_json(path)["provenance"]
        same = of(there) == of(_comparable(provenance, there))
        found = described(there)
    except (UserError, LookupError, TypeError, AttributeError, ValueError):  # there is no result to lose
        return
    if not same:
        raise UserError(
            f"{path} is of another model: {found}; this is {described(provenance)}; "
            "choose another --savedir, or remove it"
        )
