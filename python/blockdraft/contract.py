"""Checks shared by the public ops: each failure names the argument, what was expected and what
came."""

import sys
from functools import cache

import torch

from . import env, registry
from .types import MoeWorkspace, Penalties, Rows, Sampling

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
F32, F64 = (torch.float32,), (torch.float64,)
I32, I64, BOOL = (torch.int32,), (torch.int64,), (torch.bool,)

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)  # OCP's (gfx950, NVIDIA) and gfx942's


@cache
def _arch(device: torch.device) -> str:
    """ "gfx942" and the like; "" where it is not an AMD GPU."""
    if device.type != "cuda" or torch.version.hip is None:
        return ""
    return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]


def fp8_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """The fp8 that a device takes: a GPU the one that it converts in hardware, a CPU both."""
    if device.type != "cuda":
        return FP8
    return FP8[1:] if _arch(device) == "gfx942" else FP8[:1]


@cache
def _names(shape: str) -> tuple[tuple[str, int], ...]:
    """Of "T 2 B+1": (("T", 0), ("", 2), ("B", 1)): names, and what is added to them."""
    parts = [
        ("", word) if word.isdigit() else (*word.partition("+")[::2],) for word in shape.split()
    ]
    return tuple((base, int(extra or 0)) for base, extra in parts)


def _within(t: torch.Tensor, low, high) -> bool:
    least, most = torch.aminmax(t)
    return low <= least.item() and most.item() <= high


def _extent(sizes, strides) -> int:
    """From a tensor's first element to the one after its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))


def _may_overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors may share an element. Columns of the same rows do not overlap."""
    if a.is_contiguous() and b.is_contiguous():
        first_a, first_b = a.data_ptr(), b.data_ptr()
        return first_a < first_b + b.nbytes and first_b < first_a + a.nbytes
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or not b.numel():
        return False
    spans = []
    for t in (a, b):
        size = t.element_size()
        first = t.storage_offset() * size
        row = _extent(t.shape[1:], t.stride()[1:]) * size
        spans.append((first, _extent(t.shape, t.stride()) * size, row, t.stride(0) * size))
    (first_a, all_a, row_a, step), (first_b, all_b, row_b, step_b) = spans
    if first_a + all_a <= first_b or first_b + all_b <= first_a:
        return False
    if step != step_b or step == 0:
        return True
    start_a, start_b = first_a % step, first_b % step
    apart = start_a + row_a <= start_b or start_b + row_b <= start_a
    return not (apart and max(start_a + row_a, start_b + row_b) <= step)


class Check:
    """Checks of one call. Names in shapes ("T Hq Dh") bind on first use and must agree afterwards;
    "B+1" is B plus one.

    readable: whether values may be looked at: no device synchronisation (see `env.check_values`),
    and not while compiling or recording (see `Plan`), when there are none yet.
    """

    def __init__(self, op: str):
        self.op, self.dims, self.device, self.shapes, self.readable = op, {}, None, {}, False

    def fail(self, name: str, expected: str, got, kind=ValueError):
        raise kind(f"{self.op}: {name}: expected {expected}, got {got}")

    def need(self, ok: bool, name: str, expected: str, got) -> None:
        if not ok:
            self.fail(name, expected, got)

    def tensor(
        self,
        name: str,
        t,
        shape: str,
        dtypes=FLOATS,
        optional: bool = False,
        contiguous: bool = False,
    ) -> None:
        """Type, dtype, device, shape; rows may be strided but the last dimension is contiguous
        (`contiguous`: all are)."""
        if t is None and optional:
            return
        if (
            isinstance(t, torch.Tensor)
            and t.shape == self.shapes.get(shape)
            and t.dtype in dtypes
            and t.device == self.device
            and t.is_contiguous()
        ):
            return  # most are like one before; a call's checks should cost little of its time
        if not isinstance(t, torch.Tensor):
            self.fail(name, "a tensor", type(t).__name__, TypeError)
        if t.dtype not in dtypes:
            self.fail(
                name,
                " or ".join(str(d).removeprefix("torch.") for d in dtypes),
                str(t.dtype).removeprefix("torch."),
                TypeError,
            )
        if self.device is None:
            self.device = t.device
            self.readable = (
                not torch.compiler.is_compiling()
                and not registry.is_recording()
                and (t.device.type == "cpu" or env.check_values())
            )
        if t.device != self.device:
            self.fail(name, f"device {self.device}", t.device)
        names, sizes = _names(shape), t.shape
        fits = len(sizes) == len(names)
        if fits:
            for (base, extra), got in zip(names, sizes):  # a name not seen before takes what it got
                if got != (self.dims.setdefault(base, got - extra) if base else 0) + extra:
                    fits = False
        if not fits:
            known = " ".join(str(self.dims.get(word, word)) for word in shape.split())
            self.fail(
                name, f"shape [{shape}]" + (f" = [{known}]" if known != shape else ""), list(sizes)
            )
        if not t.is_contiguous() and (contiguous or t.stride(-1) != 1 and sizes[-1] > 1):
            self.fail(
                name,
                "contiguous memory" if contiguous else "a contiguous last dimension",
                f"strides {t.stride()}",
            )
        self.shapes[shape] = sizes

    def fp8(self, name: str, t, shape: str) -> None:
        """A tensor of fp8, in the format of its device: the bits of the other one mean other
        numbers."""
        self.tensor(name, t, shape, FP8)
        self.tensor(name, t, shape, fp8_types(t.device))

    def output(self, name: str, t, shape: str, dtypes, inputs: dict) -> None:
        """A tensor that the caller gave to be written: as `tensor`, and no two of its elements, nor
        one of it and one of `inputs` (by name), may share memory."""
        self.tensor(name, t, shape, dtypes)
        if torch.compiler.is_compiling() or not t.numel():
            return
        if any(stride == 0 and size > 1 for size, stride in zip(t.shape, t.stride())):
            self.fail(
                name, "memory for every element, not an expanded tensor", f"strides {t.stride()}"
            )
        for other, tensor in inputs.items():
            if tensor is not None and _may_overlap(t, tensor):
                self.fail(name, f"memory apart from {other}'s", "an overlapping tensor")

    def outputs(self, out, shapes, dtypes, inputs: dict) -> tuple[torch.Tensor, ...]:
        """The tensors that the caller gave to be written, checked, or new ones if it gave None. All
        sizes are bound before."""
        if out is None:
            sizes = [
                [self.dims.get(base, 0) + extra for base, extra in _names(shape)]
                for shape in shapes
            ]
            return tuple(
                torch.empty(size, dtype=dtype, device=self.device)
                for size, dtype in zip(sizes, dtypes)
            )
        if not isinstance(out, tuple | list) or len(out) != len(shapes):
            self.fail("out", f"{len(shapes)} tensors", type(out).__name__, TypeError)
        for i, (t, shape, dtype) in enumerate(zip(out, shapes, dtypes)):
            name = f"out[{i}]" if len(out) > 1 else "out"
            self.output(name, t, shape, (dtype,), inputs)
            inputs = inputs | {name: t}
        return tuple(out)

    def choice(self, name: str, value, choices) -> None:
        if value not in choices:
            self.fail(name, " or ".join(map(repr, choices)), repr(value))

    def values(self, name: str, t, low, high, expected: str, but=None) -> None:
        """Every value of t is low .. high and not `but`."""
        if t is None or not self.readable or not t.numel():
            return
        if (
            t.numel() > 256
            and _within(t, low, high)
            and (but is None or not bool((t == but).any()))
        ):
            return
        for value in t.flatten().tolist():  # cheaper than tensors of a few values
            if not low <= value <= high or value == but:
                self.fail(name, expected, value)

    def workspace(
        self, workspace, like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """The caller's, checked, or a new one on the device of `like`; on a CPU, None for an empty
        one."""
        if workspace is None:
            return None if 0 in shape and like.is_cpu else like.new_empty(shape, dtype=dtype)
        self.tensor("workspace", workspace, " ".join(map(str, shape)), (dtype,), contiguous=True)
        return workspace

    def moe_workspace(self, workspace: MoeWorkspace, dtype: torch.dtype) -> None:
        if not isinstance(workspace, MoeWorkspace):
            self.fail("workspace", "blockdraft.MoeWorkspace", type(workspace).__name__, TypeError)
        self.dims["T*k"] = self.dims["T"] * self.dims["k"]
        for name, shape, dtypes in (
            ("order", "T*k", I32),
            ("offsets", "E+1", I32),
            ("activations", "T*k I", (dtype,)),
            ("partials", "T*k H", F32),
        ):
            self.tensor(
                f"workspace.{name}",
                getattr(workspace, name),
                shape,
                dtypes,
                optional=name == "partials" and self.dims["k"] == 1,
                contiguous=True,
            )

    def rows(self, rows: Rows, total: int) -> None:
        if not isinstance(rows, Rows):
            self.fail("rows", "blockdraft.Rows", type(rows).__name__, TypeError)
        self.tensor("rows.prefix_lens", rows.prefix_lens, "B", I32)
        self.need(
            len(rows.prefix_lens) > 0, "rows.prefix_lens", "at least one request", "an empty batch"
        )
        self.tensor("rows.cu_rows", rows.cu_rows, "B+1", I32)
        self.tensor("rows.draft_len", rows.draft_len, "B", I32)
        self.tensor("rows.branch", rows.branch, "B P", I32)
        for name, value, least in (
            ("rows.mask_rows", rows.mask_rows, 1),
            ("rows.max_rows", rows.max_rows, 0),
            ("rows.max_prefix", rows.max_prefix, 0),
        ):
            if not (isinstance(value, int) and value >= least):
                self.fail(name, f"an integer of at least {least}", value)
        if not self.readable:
            return
        masks, bounds = rows.branch.shape[1] * rows.mask_rows, rows.cu_rows.tolist()
        self.need(
            bounds[0] == 0 and bounds[-1] == total, "rows.cu_rows", f"0 .. T = {total}", bounds
        )
        requests = zip(
            bounds,
            bounds[1:],
            rows.prefix_lens.tolist(),
            rows.draft_len.tolist(),
            rows.branch.tolist(),
        )
        # lists: cheaper than tensors of this size
        for first, last, prefix, draft_len, branch in requests:
            if not masks <= last - first <= rows.max_rows:
                self.fail(
                    "rows.cu_rows",
                    f"{masks} mask rows .. max_rows = {rows.max_rows} for each request",
                    last - first,
                )
            if not 0 <= prefix <= rows.max_prefix:
                self.fail("rows.prefix_lens", f"0 .. max_prefix = {rows.max_prefix}", prefix)
            if not -1 <= draft_len < max(last - first - masks, 0):
                self.fail("rows.draft_len", "-1 .. verify rows - 1 for each request", draft_len)
            for c in branch:
                if c != -1 and not 1 <= c <= draft_len + 1:
                    self.fail("rows.branch", "-1 or 1 .. draft_len + 1", c)

    def angles(self, name: str, cos_sin, rows: Rows) -> None:
        """RoPE's table of cosines and sines, for every position of the pass."""
        self.tensor(name, cos_sin, "positions R", F32)
        head_dim, width, count = (self.dims[size] for size in ("Dh", "R", "positions"))
        fits = width % 2 == 0 and width <= head_dim
        self.need(fits, name, f"an even width of at most Dh = {head_dim}", width)
        if self.readable:
            masks = rows.mask_rows if rows.branch.shape[1] else 0
            beyond = rows.prefix_lens + rows.draft_len + masks
            expected = f"a table of more than every position, not {count}"
            self.values(name, beyond, -1, count - 1, expected)

    def pages(
        self, k_cache, v_cache, block_table, rows: Rows, dtype: torch.dtype, stores: bool = False
    ) -> None:
        """The paged K/V cache and its table, as far as the prefix reaches (`stores`: and the live
        verify rows after it)."""
        given = [t is not None for t in (k_cache, v_cache, block_table)]
        if not all(given):
            self.need(
                not any(given),
                "k_cache, v_cache, block_table",
                "all three or none",
                f"{sum(given)} of them",
            )
            self.need(
                stores or rows.max_prefix == 0,
                "k_cache",
                "a cache, since max_prefix is not 0",
                None,
            )
            return
        low = k_cache.dtype in FP8
        dtypes = fp8_types(k_cache.device) if low else (dtype,)
        self.tensor("k_cache", k_cache, "pages page Hk Dh", dtypes)
        self.tensor("v_cache", v_cache, "pages page Hk Dh", (k_cache.dtype,))
        self.tensor("block_table", block_table, "B max_pages", I32)
        page = self.dims["page"]
        self.need(
            page >= 8 and page & (page - 1) == 0,
            "k_cache",
            "pages of a power of two >= 8 tokens",
            page,
        )
        if not self.readable:
            return
        used = [
            -(-(n + stores * (d + 1)) // page)
            for n, d in zip(rows.prefix_lens.tolist(), rows.draft_len.tolist())
        ]
        self.need(
            max(used) <= block_table.shape[1],
            "block_table",
            f"at least {max(used)} pages of {page} tokens",
            block_table.shape[1],
        )
        if not block_table.numel() or _within(block_table, 0, len(k_cache) - 1):
            return
        # what a table holds beyond its pages is its own affair
        for request, count in enumerate(used):
            self.values(
                "block_table",
                block_table[request, :count],
                0,
                len(k_cache) - 1,
                f"page numbers 0 .. {len(k_cache) - 1}",
            )

    def cache_scale(self, name: str, scale, cache) -> torch.Tensor | None:
        """The scale of a cache of fp8: float32 of one element, [Hk] or [pages,Hk], above 0. As
        [pages,Hk], of which several elements may be the same memory."""
        if cache is None or cache.dtype not in FP8:
            self.need(scale is None, name, "None, since the cache is not fp8", type(scale).__name__)
            return None
        self.need(scale is not None, name, f"a tensor, since the cache is {cache.dtype}", None)
        one = isinstance(scale, torch.Tensor) and scale.shape == (1,)
        several = isinstance(scale, torch.Tensor) and scale.dim() == 1
        self.tensor(name, scale, "1" if one else "Hk" if several else "pages Hk", F32)
        bounds = torch.finfo(torch.float32)
        self.values(name, scale, bounds.tiny, bounds.max, "finite scales above 0")
        return scale.expand(cache.shape[0], cache.shape[2])

    def vocabulary(self, num_valid_vocab: int | None, mask_token: int) -> int:
        """How many ids are valid (None: all of the logits' "vocab"), after checking both."""
        vocab = self.dims["vocab"]
        num_valid_vocab = vocab if num_valid_vocab is None else num_valid_vocab
        if not 1 <= num_valid_vocab <= vocab:
            self.fail("num_valid_vocab", f"1 .. {vocab}", num_valid_vocab)
        if not -1 <= mask_token < vocab:
            self.fail("mask_token", f"-1 .. {vocab - 1}", mask_token)
        return num_valid_vocab

    def sampling(self, name: str, sampling: Sampling) -> None:
        if not isinstance(sampling, Sampling):
            self.fail(name, "blockdraft.Sampling", type(sampling).__name__, TypeError)
        self.tensor(f"{name}.temperature", sampling.temperature, "B", F32)
        self.tensor(f"{name}.top_k", sampling.top_k, "B", I32, optional=True)
        self.tensor(f"{name}.top_p", sampling.top_p, "B", F32, optional=True)
        self.tensor(f"{name}.min_p", sampling.min_p, "B", F32, optional=True)
        self.values(
            f"{name}.temperature",
            sampling.temperature,
            0,
            sys.float_info.max,
            "a finite number >= 0",
        )
        self.values(f"{name}.top_k", sampling.top_k, 0, sys.maxsize, "0 (off) or more")
        self.values(
            f"{name}.top_p", sampling.top_p, sys.float_info.min, 1, "more than 0, at most 1"
        )
        self.values(f"{name}.min_p", sampling.min_p, 0, 1, "0 .. 1")

    def penalties(self, penalties: Penalties) -> None:
        """All but the biases, or none; the width of the words is bound before."""
        if not isinstance(penalties, Penalties):
            self.fail("penalties", "blockdraft.Penalties", type(penalties).__name__, TypeError)
        *needed, bias_ids, bias = penalties
        given = sum(t is not None for t in needed)
        self.need(given in (0, 5), "penalties", "all tensors but the biases, or none", f"{given}")
        both = (bias_ids is None) == (bias is None) and (bias is None or given)
        self.need(both, "penalties.bias", "both tensors of it and the others, or none", "some")
        if not given:
            return
        finite = sys.float_info.max, "a finite number"
        self.tensor("penalties.touched", penalties.touched, "B W", I32)
        self.tensor("penalties.counts", penalties.counts, "B vocab", I32)
        for name in ("repetition", "presence", "frequency"):
            self.tensor(f"penalties.{name}", getattr(penalties, name), "B", F32)
        self.tensor("penalties.bias_ids", bias_ids, "B N", I32, optional=True)
        self.tensor("penalties.bias", bias, "B N", F32, optional=True)
        tiny = sys.float_info.min
        self.values("penalties.repetition", penalties.repetition, tiny, finite[0], "more than 0")
        for name in ("presence", "frequency", "bias"):
            self.values(f"penalties.{name}", getattr(penalties, name), -finite[0], *finite)
        if bias_ids is not None and self.readable and bias_ids.shape[1] > 1:
            ids = bias_ids.long()
            ascending = ((ids[:, 1:] > ids[:, :-1]) | (ids[:, 1:] == 2**31 - 1)).all()
            self.need(bool(ascending), "penalties.bias_ids", "ascending ids", "others")

    def normalisers(self, name: str, t) -> None:
        """As sample_drafts leaves them."""
        self.tensor(name, t, "B K 4", F64, optional=True)

    def uniforms(self, uniforms, shape: str) -> None:
        self.tensor("uniforms", uniforms, shape, F64, optional=True)
        self.values("uniforms", uniforms, 0, 1 - 2**-53, "0 <= u < 1")
