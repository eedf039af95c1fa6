"""The names of what is measured: the ops, by their stem, a layer's whole attention, whole decodes.
Imports nothing, so that the command line knows them without torch."""

# stem: the short name on the command line and in result files of schema 1
OPS: dict[str, str | None] = {
    "block_attention": "attention",
    "cca_qkv": "cca",
    "rope_qkv": None,
    "zaya_router": None,
    "moe_dispatch": None,
    "fused_moe": "moe",
    "linear": None,
    "residual_norm": None,
    "accept_drafts": "accept",
    "sample_drafts": "sample",
    "plan_branches": None,
    "commit": None,
    "attention_block": None,
    "decode": None,
}
_STEMS = {short: stem for stem, short in OPS.items() if short}


def stem(name: str) -> str:
    """The stem that a short name stands for; any other name as it is."""
    return _STEMS.get(name, name)
