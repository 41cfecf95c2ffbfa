"""What a model folder's configuration file says, and whether transformers carries it out."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lib.run.errors import UserError

# what other architectures read; where the one at hand does not, transformers keeps it and goes on without it
MATTERS = re.compile(
    r"soft_?cap|multiplier|scal(e|ing)(_|$)|query_pre_attn|normalize_embed|qk_(layer_?)?norm|window|^layer_types$|alibi|"
    r"causal|rope|rotary|^nope|position_embedding|^mup|clip_qkv|num_.*experts|n_routed_experts|^moe_|cross_attention|"
    r"parallel_residual|residual_connection|norm_(type|eps|epsilon|offset|before)$|_before$|norm_eps|pruned_heads|"
    r"bidirectional|prefix_lm|(^|attn_|attention_)sinks?$|^(qkv|mlp|attention|use|add)_bias|is_encoder_decoder|"
    r"^(hidden_act|hidden_activation|activation_function|activation)$|^(n|num)_(heads?|attention_heads)$|"
    r"logn_attn|dynamic_ntk|attn_temperature|chunk_size$|kv_n_heads|ffn_config"
)
HARMLESS = re.compile(
    r"^(flash_rotary|fused_rotary|use_flash_rotary|scale_attn_weights|offset_alibi|is_decoder|max_window_layers|"
    r"use_sliding_window|sliding_window_pattern|_sliding_window_pattern|chunk_size_feed_forward|initializer_.*|"
    r"(resid|attn|embd)_.*drop.*|.*_dropout|loss_scale|.*_in_fp32|use_rmsnorm|rope_ratio_.*)$"
)
SAME_AS = {  # under another name: what a key may repeat
    "hidden_act|hidden_activation|activation_function|activation": "hidden_act hidden_activation activation_function",
    "n_heads?|num_(attention_)?heads": "num_attention_heads",
    "sliding_window(_size)?|window_size": "sliding_window",
    ".*norm_eps(ilon)?|norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps",
}
SAID_YES = re.compile(r"^(is_)?causal$|^(use_)?(rope|rotary)$|parallel_residual")  # what is so where it is not denied
ONE_IS_NEUTRAL = re.compile(r"^(?!.*(attn|attention|softmax|query)).*(multiplier|scal)|^partial_rotary|^rotary_pct")
NEUTRAL: tuple[object, ...] = (None, "", "default", "none", "rope", "rotary", "absolute", "causal", -1, [], {})
ROTARY = {"rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"}
REPEATED = {  # beside what `rope_parameters` holds
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_pct"), "partial_rotary_factor"),
    "rotary_emb_base": "rope_theta",
}
ALL_CAUSAL = (None, False, "false", "vision")  # of use_bidirectional_attention
SCALING = {
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
}
SCALING |= {"short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta", "partial_rotary_factor"}
SCALING |= {"mscale", "mscale_all_dim", "short_mscale", "long_mscale", "truncate", "finetuned"}


def require_understood(
    name: str, raw: dict[str, Any], config: PreTrainedConfig, trust_remote_code: bool = False
) -> None:
    """Raise UserError for what a configuration file says and `config`, made of it, does not carry out.

    raw: the content of config.json.
    """
    parts = [*_parts(raw, config)]
    if any(_sees_ahead(inside) for inside, _parsed in parts):
        raise UserError(f"'{name}' is configured to see ahead (not causal); only decoders can be measured")
    if raw.get("quantization_config"):
        described = raw["quantization_config"]
        method = described.get("quant_method", "?") if isinstance(described, dict) else described
        raise UserError(
            f"the weights of '{name}' are quantised ({method}); measure the model as it was before, or dequantise it"
        )
    for key in ("is_encoder_decoder", "add_cross_attention", "pruned_heads", "transformers_weights"):
        if raw.get(key):
            raise UserError(f"'{name}' is configured with {key}, which is not supported")
    for inside, parsed in parts:
        known = {*type(parsed)().to_dict(), *parsed.attribute_map}
        if "rope_parameters" in known:
            _require_rope(name, inside, parsed)
            ropes = dicts(parsed.rope_parameters or {})
            if any(_is_partly_rotary(rope) for rope in ropes) and not _rotates_partly(config, trust_remote_code):
                raise UserError(f"'{name}' rotates a part of each head ({ropes}), as transformers does not do")
            known |= ROTARY | {
                key for key, same in REPEATED.items() if inside.get(key) in [rope.get(same) for rope in ropes]
            }
        for key, value in inside.items():
            if key not in known and MATTERS.search(key) and not _means_nothing(key, value, inside, parsed, known):
                raise UserError(
                    f"'{name}' is configured with {key} = {str(value)[:60]}, which transformers' "
                    f"{type(config).__name__} ignores: another model would be measured"
                )


def _parts(raw: dict[str, Any], config: PreTrainedConfig) -> Iterator[tuple[dict[str, Any], PreTrainedConfig]]:
    """What is said of a model, and made of it, then the same of what it holds: of its attention, or of its decoder."""
    yield raw, config
    for key, inside in raw.items():
        parsed = getattr(config, key, None) if isinstance(inside, dict) else None
        if isinstance(parsed, PreTrainedConfig) and (key == "attn_config" or parsed is config.get_text_config()):
            yield inside, parsed


def _sees_ahead(raw: dict[str, Any]) -> bool:
    """Whether tokens of a text are to; images that do are no part of what is measured."""
    return raw.get("is_causal", True) in (False, "false") or raw.get("use_bidirectional_attention") not in ALL_CAUSAL


def _means_nothing(key: str, value: Any, raw: dict[str, Any], config: PreTrainedConfig, known: set[str]) -> bool:
    """Whether a key of a configuration file that its class does not read says what is so anyway."""
    if HARMLESS.search(key) or value in NEUTRAL:
        return True
    if isinstance(value, bool):
        return value is bool(SAID_YES.search(key))
    if value == 0 or (value == 1 and ONE_IS_NEUTRAL.search(key)):
        return True
    if "window" in key and raw.get("use_sliding_window") is False:
        return True
    if key == "layer_types" and set(value) == {"full_attention"}:
        return True
    if key == "norm_type":
        return ("rms" in str(value)) == ("rms_norm_eps" in known)
    same = [names for pattern, names in SAME_AS.items() if re.fullmatch(pattern, key)]
    return any(name in known and getattr(config, name) == value for names in same for name in names.split())


def _require_rope(name: str, raw: dict[str, Any], config: PreTrainedConfig) -> None:
    """Raise UserError if the configuration file places or scales rotary positions, and the configuration does not."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    parameters = dicts(config.rope_parameters or {})
    carried_out = {rope.get("rope_type") for rope in parameters} & {*ROPE_INIT_FUNCTIONS}
    own = dicts(type(config)().rope_parameters or {})
    known = SCALING.union(*own, config.ignore_keys_at_rope_validation)
    for rope in dicts(given) if isinstance(given, dict) else [{"rope_type": given}]:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        lost = (kind != "default" or rope.get("factor", 1) != 1) and not carried_out - {"default"}
        if lost or rope.keys() - known:
            raise UserError(f"'{name}' scales its rotary positions in a way that is not supported: {given}")
    theta = raw.get("rope_theta")
    if theta is not None and theta not in {rope.get("rope_theta") for rope in parameters}:
        raise UserError(f"'{name}' has rope_theta = {theta}, which transformers does not use")


def _is_partly_rotary(rope: dict[str, Any]) -> bool:
    """Whether whole heads would have more frequencies."""
    return rope.get("partial_rotary_factor", 1) != 1 and rope.get("rope_type") != "proportional"


def _rotates_partly(config: PreTrainedConfig, trust_remote_code: bool) -> bool:
    """Whether a model of this configuration has other frequencies than one that rotates whole heads."""
    whole = deepcopy(config)
    for rope in dicts(whole.get_text_config().rope_parameters):
        rope["partial_rotary_factor"] = 1.0
    return _frequencies(config, trust_remote_code) != _frequencies(whole, trust_remote_code)


def _frequencies(config: PreTrainedConfig, trust_remote_code: bool) -> list[torch.Size]:
    """The shapes of a model's, without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return [buffer.shape for name, buffer in model.named_buffers() if "inv_freq" in name]


def dicts(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The dicts in a dict (one for each type of layer), or itself."""
    return [item for item in value.values() if isinstance(item, dict)] or [value]
