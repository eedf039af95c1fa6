"""The residual stream between two blocks of a layer, and its RMSNorm."""

import torch


def residual_norm(
    x,
    weight,
    eps: float,
    scale=None,
    bias=None,
    residual=None,
    residual_scale=None,
    residual_bias=None,
    index=None,
):
    """RMSNorm of the stream [R,H], and the stream itself in fp32."""

    def rows(t):
        return t.float() if index is None else t[index.long()].float()

    def scaled(t, scale, bias):
        t = t if bias is None else t + bias.float()
        return t if scale is None else t * scale.float()

    stream = scaled(rows(x), scale, bias)
    if residual is not None:
        stream = stream + scaled(rows(residual), residual_scale, residual_bias)
    rounded = stream.to(x.dtype).float()
    mean = rounded.square().mean(-1, keepdim=True)
    return rounded * torch.rsqrt(mean + eps) * weight.float(), stream
