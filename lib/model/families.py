"""What running a model cannot tell, by the names of transformers' architectures: the only file that knows these.

Everything else about an architecture is found on the model itself, by lib/model/discovery.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lib.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# (test of a configuration, description) of variants that transformers builds as if they were not configured so, or
# computes differently from the model's authors
Wrong = tuple[Callable[["PreTrainedConfig"], object], str]
WRONG: dict[str, tuple[Wrong, ...]] = {
    "bloom": ((lambda c: c.slow_but_exact and c.pretraining_tp > 1, "slow_but_exact projections"),),
    "falcon": (
        (lambda c: c.new_decoder_architecture and not c.parallel_attn, "a sequential new_decoder_architecture"),
        (lambda c: c.alibi and c._attn_implementation == "eager", "eager attention, which adds ALiBi twice"),
    ),
    "mpt": (
        (lambda c: not c.attn_config.alibi or c.attn_config.alibi_bias_max != 8, "other position biases than its own"),
        (lambda c: c.attn_config.attn_type != "multihead_attention", "multi-query attention"),
        (lambda c: c.attn_config.qk_ln, "norms of queries and keys"),
        (lambda c: c.attn_config.prefix_lm, "a prefix that sees ahead"),
        (lambda c: not c.no_bias, "biases"),
        (lambda c: c.expansion_ratio != 4, "an expansion_ratio other than 4"),
        (lambda c: c.logit_scale, "a logit_scale"),
        (lambda c: c.norm_type not in ("layernorm", "low_precision_layernorm"), "other norms"),
        (lambda c: c.embedding_fraction != 1, "an embedding_fraction"),
    ),
}


def require_right(config: "PreTrainedConfig") -> None:
    """Raise UserError if transformers would build this variant wrongly."""
    for applies, variant in WRONG.get(config.model_type, ()):
        if applies(config):
            raise UserError(f"unsupported variant of '{config.model_type}': {variant}")
