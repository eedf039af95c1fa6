"""Which of SGLang's requests the worker cannot serve."""

from typing import Any


def unsupported(request: Any) -> str | None:
    """What a request asks for that a step of drafts does not do, or None."""
    params = request.sampling_params
    off = dict(frequency_penalty=0, presence_penalty=0, repetition_penalty=1, min_new_tokens=0)
    for name, value in off.items():
        if getattr(params, name) != value:
            return name
    for owner, name in (
        (params, "logit_bias"),
        (request, "grammar"),
        (request, "custom_logit_processor"),
        (request, "lora_id"),
        (request, "return_logprob"),
        (request, "return_hidden_states"),
    ):
        if getattr(owner, name, None):
            return name
    return None
