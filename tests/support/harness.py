"""Builds the checks of csrc (tests/support/checks.cpp) and calls them from tests: parameters as the
kernels take them."""

import ctypes
import fcntl
import hashlib
import subprocess
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
TARGETS = {"host": 0, "sim": 1, "sim with one buffer": 2}
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class AttentionParams(ctypes.Structure):
    """csrc/block_attention.h's, field by field."""

    _fields_ = [
        *((name, POINTER) for name in ("q", "k", "v", "k_cache", "v_cache")),
        *((name, LONG) for name in ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")),
        *(
            (name, LONG)
            for name in ("k_page", "k_slot", "k_kv_head", "v_page", "v_slot", "v_kv_head")
        ),
        *(
            (name, POINTER)
            for name in ("block_table", "cu_rows", "prefix_lens", "draft_len", "branch")
        ),
        *((name, LONG) for name in ("table_row", "branch_row")),
        *((name, POINTER) for name in ("out", "lse", "workspace")),
        *((name, LONG) for name in ("out_row", "out_head", "lse_row", "total_rows")),
        *(
            (name, INT)
            for name in (
                "batch",
                "query_heads",
                "kv_heads",
                "head_dim",
                "page_shift",
                "mask_rows",
                "proposals",
            )
        ),
        *((name, INT) for name in ("window", "split", "max_rows", "max_prefix")),
        ("scale", FLOAT),
        ("bidirectional", ctypes.c_bool),
    ]


class CommitParams(ctypes.Structure):
    """csrc/commit.h's, field by field."""

    _fields_ = [
        *((name, POINTER) for name in ("qk", "v_late", "conv_state", "late_state")),
        *(
            (name, LONG)
            for name in (
                "qk_layer",
                "qk_row",
                "v_layer",
                "v_row",
                "conv_layer",
                "conv_slot",
                "conv_tap",
            )
        ),
        *((name, LONG) for name in ("late_layer", "late_slot")),
        *((name, POINTER) for name in ("accepted", "cu_rows", "slots", "prefix_lens")),
        *((name, INT) for name in ("batch", "layers", "channels", "half", "depth")),
    ]


def attention_params(
    q, k, v, k_cache, v_cache, table, rows, out, lse, workspace, *, split, window=0, scale=None
) -> AttentionParams:
    strides = {}
    for name, t in (("q", q), ("k", k), ("v", v), ("out", out)):
        strides |= {f"{name}_row": t.stride(0), f"{name}_head": t.stride(1)}
    for name, t in (("k", k_cache), ("v", v_cache)):
        strides |= {
            f"{name}_page": t.stride(0),
            f"{name}_slot": t.stride(1),
            f"{name}_kv_head": t.stride(2),
        }
    pointers = dict(
        q=q,
        k=k,
        v=v,
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=table,
        cu_rows=rows.cu_rows,
        prefix_lens=rows.prefix_lens,
        draft_len=rows.draft_len,
        branch=rows.branch,
        out=out,
        lse=lse,
        workspace=workspace,
    )
    return AttentionParams(
        **{name: t.data_ptr() for name, t in pointers.items()},
        **strides,
        table_row=table.stride(0),
        branch_row=rows.branch.stride(0),
        lse_row=lse.stride(0),
        total_rows=len(q),
        batch=len(rows.prefix_lens),
        query_heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        page_shift=k_cache.shape[1].bit_length() - 1,
        mask_rows=rows.mask_rows,
        proposals=rows.branch.shape[1],
        window=window,
        split=split,
        max_rows=rows.max_rows,
        max_prefix=rows.max_prefix,
        scale=(q.shape[2] ** -0.5 if scale is None else scale) * 1.4426950408889634,
        bidirectional=rows.bidirectional,
    )


def commit_params(qk, v_late, accepted, rows, conv_state, late_state, slots) -> CommitParams:
    return CommitParams(
        qk=qk.data_ptr(),
        v_late=v_late.data_ptr(),
        conv_state=conv_state.data_ptr(),
        late_state=late_state.data_ptr(),
        qk_layer=qk.stride(0),
        qk_row=qk.stride(1),
        v_layer=v_late.stride(0),
        v_row=v_late.stride(1),
        conv_layer=conv_state.stride(0),
        conv_slot=conv_state.stride(1),
        conv_tap=conv_state.stride(2),
        late_layer=late_state.stride(0),
        late_slot=late_state.stride(1),
        accepted=accepted.data_ptr(),
        cu_rows=rows.cu_rows.data_ptr(),
        slots=slots.data_ptr(),
        prefix_lens=rows.prefix_lens.data_ptr(),
        batch=len(accepted),
        layers=len(qk),
        channels=qk.shape[2],
        half=v_late.shape[2],
        depth=conv_state.shape[2],
    )


FLAGS: list[str] = []  # further ones for the compiler: pytest --native-flags


def built(sources, csrc: Path) -> ctypes.CDLL:
    """A shared library of C++ sources that include the headers of `csrc`."""
    command = [
        "c++",
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        *FLAGS,
        f"-I{csrc}",
    ]
    read = [*sources, *csrc.rglob("*.h"), *(ROOT / "tests/support").glob("*.h")]
    key = hashlib.sha256(
        "".join(command[:-1] + [path.read_text() for path in sorted(read)]).encode()
    ).hexdigest()[:16]
    folder = ROOT / "build" / "checks" / key
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "checks.so"
    with open(folder / "lock", "w") as lock:  # of several test processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            objects = [folder / f"{source.stem}.o" for source in sources]
            running = [
                subprocess.Popen([*command, "-c", source, "-o", out])
                for source, out in zip(sources, objects)
            ]
            assert not any([process.wait() for process in running]), (
                "tests/support does not compile"
            )
            subprocess.run([*command, "-shared", *objects, "-o", folder / "linking.so"], check=True)
            (folder / "linking.so").rename(library)
    return ctypes.CDLL(str(library))


@cache
def checks() -> ctypes.CDLL:
    """The checks (tests/support/*checks.cpp) and the CPU launchers."""
    loaded = built(
        [
            *sorted((ROOT / "tests/support").glob("*checks.cpp")),
            *sorted((ROOT / "csrc").glob("*_host.cpp")),
        ],
        ROOT / "csrc",
    )
    for function, structure in (
        ("attention_params_size", AttentionParams),
        ("commit_params_size", CommitParams),
    ):
        getattr(loaded, function).restype = ctypes.c_size_t
        assert getattr(loaded, function)() == ctypes.sizeof(structure), (
            f"{structure.__name__} differs from csrc"
        )
    return loaded


def pointer(t: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())
