"""The launches of an op for a shape of ZAYA1-8B in bf16, as its schedules make them: workgroups,
which loops of the source run how often, and the bytes that no schedule can do without."""

from collections.abc import Iterator

from . import budget, models
from .costs import distinct_experts
from .figures import WEIGHT_BYTES
from .launches import CHUNK_KEYS, FEW_PAIRS
from .route import Trip
from .sampler_work import accept, sample, truncated_accept, truncated_sample
from .work import BYTES, Shape, Work, ceil

HIDDEN = INNER = 2048
EXPERTS = 16
QUERY_HEADS, KV_HEADS, HEAD_DIM = 8, 2, 128
EVEN = [1 / EXPERTS] * EXPERTS
GROUP = QUERY_HEADS // KV_HEADS
MAX_CHUNKS = 64
GPU_GROUPS = 512
XCDS = 8


def chunks_of(context: int, chunk_keys: int) -> int:
    return min(max(ceil(context, chunk_keys), 1), MAX_CHUNKS)


def attention(
    batch: int, context: int, rows: int, chunk_keys: int = CHUNK_KEYS, fp8: bool = False
) -> Shape:
    """`rows` of each request, 16 of them verify rows, over `context` cached tokens. fp8: which are
    cached in that."""
    moved = 2 * batch * context * KV_HEADS * HEAD_DIM * (1 if fp8 else BYTES)
    moved += 2 * batch * rows * QUERY_HEADS * HEAD_DIM * BYTES
    shortest = chunks_of(context, chunk_keys)
    pairs = shortest == 2 or batch * KV_HEADS * shortest >= 2 * GPU_GROUPS

    def cpp(arch: str) -> Iterator[Work]:
        few = rows * GROUP <= 64
        chunks = chunks_of(context, chunk_keys if few else 2 * chunk_keys)
        together = 2 if few and pairs else 1
        splits = ceil(chunks, together)
        tiles = ceil(rows, 256 // GROUP)
        columns = ceil(rows, tiles) * GROUP
        turns = ceil(context / chunks, 32 * 4 if few else 32)
        tile = "Few" if few else "Many"
        yield Work(
            "attend",
            "block_attention_kernelINS_4bf16ELNS_13AttentionStepE0ELi128E"
            + (r"NS_\d+e4m3" if fp8 else "S1_E"),
            ceil(batch * KV_HEADS * splits * tiles, XCDS) * XCDS,
            (Trip(f"Attention<{tile}, T>", together, (Trip("float shrink", turns),)),),
            moved,
            4 if few else ceil(columns, 64),
        )
        if splits > 1:
            parts = 2 ** max(0, (ceil(splits, 8) - 1).bit_length())
            first = "tree.join(nodes + 2 * j" if parts > 1 else "return finish(wave, tree"
            yield Work(
                "merge",
                "block_attention_kernelINS_4bf16ELNS_13AttentionStepE1E",
                ceil(batch * rows * QUERY_HEADS * parts, 8),
                (Trip(first), Trip("Group::store(out + 2 * i + j")),
                streams=False,
            )

    def triton(arch: str) -> Iterator[Work]:
        columns = min((128, 64), key=lambda size: ceil(rows, size // GROUP) * (size + 32))
        tiles = ceil(rows, columns // GROUP)
        together = 2 if columns == 64 and pairs else 1
        splits = ceil(shortest, together)
        loop = "in tl.range(whole, stop, KEYS" if fp8 else "in range(begin, whole, KEYS)"
        turns = Trip(loop, ceil(context / shortest, 32))
        yield Work(
            "attend",
            f"attend bf16 dim=128 rows={64 if columns > 64 else 1}"
            + " fp8" * fp8
            + " pairs" * (together > 1),
            ceil(batch * KV_HEADS * splits, XCDS) * XCDS * tiles,
            together * (turns,),
            moved,
        )
        if splits > 1:
            yield Work(
                "merge",
                "merge bf16 dim=128" + " pairs" * (together > 1),
                batch * rows * QUERY_HEADS,
                streams=False,
            )

    label = f"B={batch} L={context // 1024}k rows={rows}" + " cache=fp8" * fp8
    scores = batch * rows * context * QUERY_HEADS
    launches = {"cpp": cpp, "triton": triton}
    return Shape("block_attention", label, launches, 4 * scores * HEAD_DIM, scores)


# How experts' weights are in a symbol of the C++ kernels, by their format
STORED = {"bf16": r"S\d_E", "fp8": r"NS_\d+e4m3", "mxfp4": r"NS_\d+e2m1x2"}


def moe(rows: int, weights: str = "bf16") -> Shape:
    """Rows that the router spreads evenly over experts whose weights are in this format."""
    few = rows <= FEW_PAIRS
    size = WEIGHT_BYTES[weights] / BYTES
    dispatch = Work("dispatch", "moe_dispatch_kernel", 1, streams=False)

    def cpp(arch: str) -> Iterator[Work]:
        if not few:
            yield dispatch
        kind = ("9SplitGemmINS_4bf16E" if few else "4GemmINS_4bf16ELi1E") + STORED[weights]
        experts = distinct_experts(rows, EVEN)
        # an item is found half way through the experts, on average
        search = Trip("i < some && !is_in", EXPERTS // 2, (Trip("count = ends[i] - begin"),))
        find = Trip("!is_in; first += 64", 1, (search,))
        if few:
            other = Trip("count = __builtin_popcountll(own)")
            find = Trip("experts[__builtin_ctzll(left)]", ceil(experts, 2), (other,))
        tiles = 2 if few and weights != "bf16" else 1  # of 16 channels
        # two stages of 128 at a time, of which a matrix instruction multiplies 16 or 32; a wave has
        # an eighth of the depth, where there are few
        sums = tiles * ceil(rows / experts, 16)
        products = 8 * sums * (2 if arch == "gfx942" else 1)
        loop, depth = ("stage + kStages <= whole", 2048) if few else ("stage < stages", 256)
        of_part = Trip("totals[r][p] += sums[r][p]")
        turn = Trip(loop, HIDDEN // depth, () if few else (of_part,), products)
        found = Trip("found[rank] = pair" if few else "found[i] = p.order")
        for number, launch in enumerate(budgeted(rows, "fused_moe"), 1):
            code = f"fused_moe_kernelINS_4cdna{kind}.*MoeStepE{number}E"
            step = launch.kernel.split()[1]
            groups, moved = ceil(launch.groups, tiles), size * launch.bytes
            finish = Trip("silu * up" if number == 1 else "y *= p.weight(pair)")
            work = Work(step, code, groups, (find, found, turn, finish), moved)
            if few:  # the sums of a panel and a tile are those of one wave
                work = work._replace(busy=sums, others=(find, found, turn))
            yield work

    def triton(arch: str) -> Iterator[Work]:
        narrow = rows <= 16 * EXPERTS
        columns, channels, depth = (16, 32, 128) if narrow else (64, 64, 64)
        if not few:
            yield dispatch._replace(code="dispatch experts=16")
        experts = distinct_experts(rows, EVEN)
        chunks = ceil(rows / experts, columns)
        find = Trip("for expert in range(num_experts)", EXPERTS)
        compiled = 16 if few else 272
        for step, launch in zip(("gate_up", "down"), budgeted(rows, "fused_moe"), strict=True):
            groups = round(experts * chunks * ceil(HIDDEN, channels))
            trips = (find, Trip("tokens = tl.load(token_at + start", HIDDEN // depth))
            format = "" if weights == "bf16" else f"{weights} "
            code = f"{step} bf16 {format}rows={compiled}"
            yield Work(step, code, groups, trips, size * launch.bytes)
        # ends at once where rows have an expert, and one choice
        yield Work("combine", "combine bf16", 2 * rows, streams=False)

    flops = 6 * rows * HIDDEN * INNER
    label = f"T={rows}" + f" experts={weights}" * (weights != "bf16")
    return Shape("fused_moe", label, {"cpp": cpp, "triton": triton}, flops)


def budgeted(rows: int, op: str) -> list[budget.Launch]:
    found = budget.launches(models.find("ZAYA1-8B"), rows)
    return [launch for launch in found if launch.kernel.startswith(op)]


def convolved(arch: str, rows: int) -> dict[str, object]:
    """What waves of the C++ kernel of cca_qkv do for some rows of a KV head, which has the longest
    way: all of them multiply; what is done for eight channels of 16 rows each takes half of
    them."""
    find = Trip("request += __builtin_popcountll", 1)
    products = ceil(rows, 16) * (16 if arch == "gfx942" else 8)
    steps = Trip("first * Depth::kStep < depth", 1, products=products)
    multiply = Trip("start < dim; start += Gemm::kRows", 1, (steps,))
    trips = (
        find,
        Trip("memory.rows[c] = find_row", 1),
        Trip("group.each(p.taps0, dim", 1),
        Trip("group.each(dim, [&](int i)", 1),
        Trip("return copy_value(p, c)", 1),
        Trip("return mix(p, c)", 1),
        multiply,
        Trip("return add_residual(p, c)", 1),
        Trip("total += memory.squares", HEAD_DIM // 64),  # unrolled by 8
        Trip("return finish(p, c)", 1, whole=True),
    )
    if rows > 16:
        return dict(trips=trips)
    return dict(trips=trips, busy=4, others=(find, multiply))


def cca(rows: int, fp8: bool = False) -> Shape:
    """fp8: keys and values are also stored in a cache of that."""
    (launch,) = budgeted(rows, "cca_qkv")
    moved = launch.bytes + fp8 * 2 * rows * KV_HEADS * HEAD_DIM

    def cpp(arch: str) -> Iterator[Work]:
        code = "cca_qkv_kernelINS_4bf16ELNS_7CcaStepE0E" + (r"NS_\d+e4m3" if fp8 else "S1_E")
        ways = convolved(arch, 16 if rows < 1024 else 29)
        yield Work("convolve", code, launch.groups, bytes=moved, **ways)

    def triton(arch: str) -> Iterator[Work]:
        heads = QUERY_HEADS + KV_HEADS
        code = "convolve bf16" + " fp8" * fp8
        yield Work("convolve", code, ceil(rows, 16) * heads, None, moved)

    flops = 4 * rows * (QUERY_HEADS + KV_HEADS) * HEAD_DIM**2
    label = f"T={rows}" + " cache=fp8" * fp8
    return Shape("cca_qkv", label, {"cpp": cpp, "triton": triton}, flops)


def shapes() -> list[Shape]:
    found = [
        attention(batch, context * 1024, rows, fp8=fp8)
        for fp8 in (False, True)
        for rows in (16, 64)
        for batch, context in ((32, 8), (8, 32), (1, 32))
    ]
    samplers = accept, truncated_accept, sample, truncated_sample
    found += [op(batch) for op in samplers for batch in (1, 32)]
    found += [moe(rows, weights) for weights in STORED for rows in (1, 16, 64, 272)]
    return found + [cca(rows, fp8) for fp8 in (False, True) for rows in (64, 272, 4096)]
