"""`generate(..., custom_generate=blockdraft_generate)`."""

from collections.abc import Sequence
from typing import Any

import torch

from ...contract import Check
from ...decode import BlockDecoder
from ...layout import BlockLayout
from ...models.config import ZayaConfig
from ...models.weights import assemble
from ...models.zaya import ZayaModel
from ...types import Request

CHECK = Check("blockdraft_generate")
IGNORED = {"attention_mask", "position_ids", "use_cache", "logits_to_keep"}
CACHES = ("past_key_values", "cache")


def blockdraft_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    layout: BlockLayout | None = None,
    rule: str = "token",
    drafter: str = "sampled",
    branches: Sequence[int] | str | None = None,
    draft_temperature: float | None = None,
    mix: float = 1.0,
    **model_kwargs: Any,
) -> Any:
    """The decoding loop that `generate` calls. Its tokens follow the distribution of plain decoding
    by `generate`: greedy, or with temperature, top_k and top_p.

        model.generate(**inputs, custom_generate=blockdraft_generate, layout=BlockLayout.tidar(16))

    layout, rule, drafter, branches  as BlockDecoder takes them; the layout is by default
                                     BlockLayout.tidar(16), for which the model's config needs a
                                     mask_token_id
    draft_temperature, mix           as Request takes them
    Draws depend on torch's generator (`torch.manual_seed`), though not as those of `generate` do.
    Stopping criteria are asked after every new token, without scores. Whatever has no counterpart
    here (other logits processors, beams, scores, a cache to go on from) is refused. `generate`
    keeps a streamer to itself when it is given a function.
    """
    CHECK.need(generation_config.num_beams == 1, "num_beams", "1", generation_config.num_beams)
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        CHECK.need(not getattr(generation_config, name, None), name, "False", True)
    prompts = _prompts(input_ids, model_kwargs)
    ours = shared_model(model)
    sampling = _sampling(generation_config, logits_processor, ours.config)
    longest, stop, others = _stopping(stopping_criteria)
    layout = BlockLayout.tidar(16) if layout is None else layout
    decoder = BlockDecoder(ours, layout, rule=rule, drafter=drafter, branches=branches)
    seeds = torch.randint(2**63 - 1, (len(prompts),)).tolist()
    requests = [
        Request(
            prompt,
            longest - input_ids.shape[1],
            seed=seed,
            draft_temperature=draft_temperature,
            mix=mix,
            stop=stop,
            **sampling,
        )
        for prompt, seed in zip(prompts, seeds)
    ]
    emitted = _decode(decoder, requests, input_ids, others)
    return _result(input_ids, emitted, generation_config)


def shared_model(model: Any) -> ZayaModel:
    """A ZayaForCausalLM as blockdraft's model of the same memory: nothing is copied, and what
    becomes of the weights in place, both see. Each layer's four projections of attention move into
    one piece of memory the first time."""
    check = Check("shared_model")
    kind = getattr(model.config, "model_type", None)
    check.need(kind == "zaya", "model", "a ZayaForCausalLM", type(model).__name__)
    tensors = model.state_dict()
    devices = sorted({str(t.device) for t in tensors.values()})
    check.need(len(devices) == 1, "model", "all weights on one device", devices)
    config = ZayaConfig.of(model.config.to_dict())
    weights = assemble(config, tensors)
    for layer, module in zip(weights.layers, model.model.layers):
        attention = module.self_attn.qkv_proj
        parts = [attention.q_proj, attention.k_proj]
        parts += [attention.v_proj_current, attention.v_proj_delayed]
        sizes = [part.out_features for part in parts]
        for part, rows in zip(parts, layer.projection.split(sizes)):
            part.weight.data = rows
        if layer.projection_bias is not None:
            for part, values in zip(parts, layer.projection_bias.split(sizes)):
                part.bias.data = values
    return ZayaModel(config, weights)


def _prompts(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> list[list[int]]:
    """Without the padding on their left."""
    given = {name for name, value in model_kwargs.items() if value is not None}
    unknown = sorted(given - IGNORED - set(CACHES))
    CHECK.need(not unknown, "generate's arguments", "none of the model's", ", ".join(unknown))
    for cache in (model_kwargs.get(name) for name in CACHES):
        cached = 0 if cache is None else int(cache.get_seq_length())
        CHECK.need(cached == 0, "past_key_values", "an empty cache", f"{cached} tokens")
    mask, ids = model_kwargs.get("attention_mask"), input_ids.tolist()
    starts = [0] * len(ids)
    if mask is not None:
        width = mask.shape[1]
        starts = (width - mask.bool().sum(1)).tolist()
        left = all(bool(row[start:].all()) for row, start in zip(mask, starts))
        CHECK.need(left, "attention_mask", "padding on the left only", "padding elsewhere")
    positions = model_kwargs.get("position_ids")
    for row, start in zip([] if positions is None else positions.tolist(), starts):
        plain = row[start:] == list(range(len(row) - start))
        CHECK.need(plain, "position_ids", "0, 1, 2, ... from the first token", row[start:])
    return [row[start:] for row, start in zip(ids, starts)]


def _sampling(generation_config: Any, processors: Any, config: ZayaConfig) -> dict[str, Any]:
    """Temperature, top_k and top_p, in this order, as the processors say."""
    banned = {config.mask_token_id, *range(config.num_valid_vocab, config.vocab_size)}
    options: dict[str, Any] = {}
    for processor in processors:
        name = type(processor).__name__
        if name == "TemperatureLogitsWarper" and not options:
            options["temperature"] = processor.temperature
        elif name == "TopKLogitsWarper" and "top_p" not in options and _plain(processor):
            options["top_k"] = processor.top_k
        elif name == "TopPLogitsWarper" and _plain(processor):
            options["top_p"] = processor.top_p
        elif name == "SuppressTokensLogitsProcessor":  # what is never drawn anyway
            more = set(processor.suppress_tokens.tolist()) - banned
            CHECK.need(not more, "suppress_tokens", f"some of {banned}", more)
        else:
            expected = "temperature, top_k and top_p, in this order"
            CHECK.fail("logits_processor", expected, name)
    return options if generation_config.do_sample else {"temperature": 0.0}


def _plain(processor: Any) -> bool:
    kept = getattr(processor, "min_tokens_to_keep", 1)
    return processor.filter_value == -torch.inf and kept == 1


def _stopping(criteria: Any) -> tuple[int, tuple[int, ...], list[Any]]:
    """The greatest length, the ids that end a completion, and the criteria that are to be asked."""
    lengths: list[int] = []
    stop: set[int] = set()
    others = []
    for criterion in criteria:
        name = type(criterion).__name__
        if name == "MaxLengthCriteria":
            lengths.append(criterion.max_length)
        elif name == "EosTokenCriteria":
            stop |= set(criterion.eos_token_id.tolist())
        else:
            others.append(criterion)
    CHECK.need(bool(lengths), "max_length", "a length", None)
    return min(lengths), tuple(sorted(stop)), others


def _decode(
    decoder: BlockDecoder, requests: list[Request], input_ids: torch.Tensor, criteria: list[Any]
) -> list[list[int]]:
    """The tokens that each request emits."""
    longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
    batch = decoder.batch(len(requests), longest)
    tickets = batch.add(*requests)
    emitted: dict[int, list[int]] = {ticket: [] for ticket in tickets}
    prompts = dict(zip(tickets, input_ids))  # of those that go on
    while prompts:
        ended = batch.step()
        for ticket, prompt in list(prompts.items()):
            if ticket not in ended and not criteria:
                continue
            tokens = ended[ticket].tokens if ticket in ended else batch.tokens(ticket)
            stop = _first_stop(criteria, prompt, tokens, len(emitted[ticket]))
            emitted[ticket] = tokens[:stop]
            if ticket in ended:
                reason = ended[ticket].reason
                CHECK.need(reason != "invalid", "logits", "finite numbers", "others")
            elif stop is not None:
                batch.abort(ticket)
            else:
                continue
            del prompts[ticket]
    return [emitted[ticket] for ticket in tickets]


def _first_stop(
    criteria: list[Any], prompt: torch.Tensor, tokens: list[int], asked: int
) -> int | None:
    """After how many tokens, of those beyond the first `asked`, a criterion holds."""
    ids = torch.cat([prompt, prompt.new_tensor(tokens)])[None]
    for count in range(asked + 1, len(tokens) + 1) if criteria else ():
        before = ids[:, : len(prompt) + count]
        if any(bool(torch.as_tensor(criterion(before, None)).any()) for criterion in criteria):
            return count
    return None


def _result(input_ids: torch.Tensor, emitted: list[list[int]], generation_config: Any) -> Any:
    """As `generate` returns it: prompts and completions, padded on the right."""
    width = max(map(len, emitted))
    pad = generation_config._pad_token_tensor
    CHECK.need(
        pad is not None or all(len(tokens) == width for tokens in emitted),
        "pad_token_id",
        "one, since completions end at different lengths",
        None,
    )
    pad = 0 if pad is None else int(pad)
    padded = [tokens + [pad] * (width - len(tokens)) for tokens in emitted]
    sequences = torch.cat([input_ids, input_ids.new_tensor(padded)], 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    from transformers.generation import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=sequences)
