"""What a training run is made of. Each ingredient of the drafter can be left out, to see what it is
worth."""

from dataclasses import dataclass, replace

from ..data import BYTE_EOS, BYTE_MASK, BYTE_VOCAB


@dataclass(frozen=True)
class Recipe:
    """A training sequence is `length` clean tokens as verify rows, then about as many mask rows in
    proposals at random branches.

    plain         share of the steps, the first ones, that train without proposals
    long          share of the steps, the last ones, whose sequences are `stretch` times as long,
                  and as many times fewer
    blocks        mask rows of a proposal, drawn for each step
    decay         weight of mask offset m is decay ** m: drafts beyond a rejection are lost
    distil        share of the mask loss that is KL to the autoregressive head's distribution, which
                  is what drafts are tested against; the rest is likelihood of the text
    accept        share of the steps, the last ones, that maximise the expected number of accepted
                  drafts instead
    experts       of a layer; only one of them costs time
    tests         whether the standard library's tests are part of the text
    """

    steps: int = 4500
    batch: int = 16
    length: int = 256
    plain: float = 0.25
    long: float = 0.15
    stretch: int = 4
    blocks: tuple[int, ...] = (4, 8, 16)
    decay: float = 0.85
    distil: float = 0.5
    accept: float = 0.25
    experts: int = 8
    tests: bool = True
    muon: bool = True
    peak_lr: float = 3e-3
    seed: int = 0


# One ingredient less each; `full` is the recipe itself.
ABLATIONS: dict[str, dict[str, object]] = {
    "full": {},
    "one block length (16)": dict(blocks=(16,)),
    "all offsets alike": dict(decay=1.0),
    "no distillation": dict(distil=0.0),
    "no acceptance loss": dict(accept=0.0),
    "4 experts": dict(experts=4),
    "without the library's tests": dict(tests=False),
    "AdamW for the matrices": dict(muon=False),
    "short context only": dict(long=0.0),
}


def refining(recipe: Recipe, experts: int) -> Recipe:
    """The recipe for a model that can already write, with so many experts."""
    return replace(recipe, experts=experts, plain=0.1)


def config(recipe: Recipe) -> dict[str, object]:
    """config.json of the model."""
    return dict(
        model_type="zaya",
        vocab_size=BYTE_VOCAB,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        moe_intermediate_size=192,
        num_experts=recipe.experts,
        router_hidden_size=32,
        max_position_embeddings=8192,
        rope_parameters={
            "hybrid": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        },
        eos_token_id=BYTE_EOS,
        mask_token_id=BYTE_MASK,
        num_valid_vocab=BYTE_MASK,
    )
