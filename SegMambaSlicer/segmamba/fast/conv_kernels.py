"""Convolutions as matrix products in Triton (implicit GEMM), for maps with a border of zeros.

Both kernels read the columns of the matrix, one for each tap and input channel, straight from the map; nothing is
unfolded in memory. Products are accumulated in float32, and the sums that the following norm needs are taken from the
accumulators.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found]
import triton.language as tl  # type: ignore[import-untyped, import-not-found]

# Sizes and distances in voxels: a kernel that was compiled for one layer serves all.
SIZES = (
    "depth",
    "height",
    "width",
    "segment",
    "steps",
    "splits",
    "voxels",
    "x_batch",
    "x_plane",
    "x_row",
    "y_batch",
    "y_plane",
    "y_row",
)


@triton.jit
def _row_sums(values, M: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add rows r and r + 8 of every 16: a thread of the tensor cores holds both, so nothing moves between threads."""
    return tl.sum(tl.reshape(values, (M // 16, 2, 8, N)), axis=1)


@triton.jit(do_not_specialize=SIZES)
def gemm_kernel(  # type: ignore[no-untyped-def]
    x, w, bias, y, partial, sums,
    depth, height, width, x_batch, x_plane, x_row, y_batch, y_plane, y_row, y_channel, steps,
    C, XS, N, YS, splits,
    K: tl.constexpr, DILATION: tl.constexpr, STRIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTIAL: tl.constexpr,
    ACTIVATION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One program makes BM output voxels by BN output channels, or, with PARTIAL, a part of their sum over taps.

    x starts at tap (0, 0, 0) of output voxel (0, 0, 0). w is (K^3 C rounded up to BK, N). Strides count voxels of XS or
    YS elements; y_channel counts elements. sums is (B, row blocks, 2, N): sums and sums of squares.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    batch = (tl.program_id(2) // splits).to(tl.int64)
    split = tl.program_id(2) % splits
    voxels = depth * height * width
    m = block * BM + tl.arange(0, BM)
    inside = m < voxels
    # Rows beyond the end read the last voxel: no mask in the loop.
    at = tl.minimum(m, voxels - 1)
    column = at % width
    line = at // width
    plane = line // height
    line = line % height
    rows = (plane * x_plane + line * x_row + column) * STRIDE * XS
    x += batch * x_batch * XS
    channels = n < N
    accumulator = tl.zeros((BM, BN), dtype=tl.float32)
    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(split * share + share, steps)):
        k = step * BK + tl.arange(0, BK)
        # Columns beyond the last tap have weights of zero.
        tap = tl.minimum(k // C, K * K * K - 1)
        offset = ((tap // (K * K)) * x_plane + (tap // K % K) * x_row + tap % K) * DILATION * XS + k % C
        a = tl.load(x + rows[:, None] + offset[None, :])
        b = tl.load(w + k[:, None] * N + n[None, :], mask=channels[None, :], other=0.0)
        accumulator = tl.dot(a, b, accumulator)
    mask = inside[:, None] & channels[None, :]
    if PARTIAL:
        base = partial + (split + batch * splits) * voxels * N
        tl.store(base + m[:, None] * N + n[None, :], accumulator, mask=mask)
    else:
        if SUMS:
            counted = tl.where(inside[:, None], accumulator, 0.0)
            place = sums + ((batch * tl.num_programs(1) + block) * 2) * N + n
            tl.store(place, tl.sum(_row_sums(counted, BM, BN).reshape(BM // 2, BN), axis=0), mask=channels)
            squares = _row_sums(counted * counted, BM, BN).reshape(BM // 2, BN)
            tl.store(place + N, tl.sum(squares, axis=0), mask=channels)
        if bias is not None:
            accumulator += tl.load(bias + n, mask=channels, other=0.0)[None, :]
        if ACTIVATION == 1:  # GELU
            accumulator = 0.5 * accumulator * (1 + tl.erf(accumulator * 0.7071067811865476))
        place = (plane * y_plane + line * y_row + column) * YS
        y += batch * y_batch * YS
        tl.store(y + place[:, None] + n[None, :] * y_channel, accumulator.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def march_kernel(  # type: ignore[no-untyped-def]
    x, w, y, sums,
    depth, height, width, segment, steps, x_batch, x_plane, x_row, y_batch, y_plane, y_row,
    C, XS, N, YS, G: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    BY: tl.constexpr, BX: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One program marches along z through BY x BX columns of voxels and makes G of the N output channels.

    Every input plane is read once for the K output planes that it belongs to: K times fewer reads of the input than in
    `gemm_kernel`. The sums of those K planes are the columns of one product, B1 + B2 >= K G of them; output plane o is
    always group o % K of them, so the order of the weights' groups rotates with the planes. With a dilation, a program
    takes every DILATION-th plane.

    x starts at tap (0, 0, 0) of output voxel (0, 0, 0). w is (N / G, K rotations, steps BK, B1 + B2): for each
    rotation the K^2 C columns of a plane of taps. sums is (B, programs along z, programs in the plane, K, 2, N).
    """
    BM: tl.constexpr = BY * BX
    part = tl.program_id(0)
    tile = tl.program_id(1)
    runs = tl.cdiv(tl.cdiv(depth, DILATION), segment) * DILATION
    run = tl.program_id(2) % runs
    batch = (tl.program_id(2) // runs).to(tl.int64)
    m = tl.arange(0, BM)
    across = tl.cdiv(width, BX)
    column = (tile % across) * BX + m % BX
    line = (tile // across) * BY + m // BX
    inside = ((column < width) & (line < height))[:, None]
    rows = (tl.minimum(line, height - 1) * x_row + tl.minimum(column, width - 1)) * XS
    place = ((line * y_row + column) * YS)[:, None]
    first = run % DILATION + run // DILATION * segment * DILATION
    count = tl.minimum(segment, tl.cdiv(depth - first, DILATION))
    x += (batch * x_batch + first * x_plane) * XS
    y += (batch * y_batch + first * y_plane) * YS + part * G
    w += part * K * steps * BK * (B1 + B2)
    c1 = tl.arange(0, B1)
    a1 = tl.zeros((BM, B1), dtype=tl.float32)
    if B2 > 0:
        c2 = B1 + tl.arange(0, B2)
        a2 = tl.zeros((BM, B2), dtype=tl.float32)
    if SUMS:
        s1 = tl.zeros((BM // 16, 8, B1), dtype=tl.float32)
        q1 = tl.zeros((BM // 16, 8, B1), dtype=tl.float32)
        if B2 > 0:
            s2 = tl.zeros((BM // 16, 8, B2), dtype=tl.float32)
            q2 = tl.zeros((BM // 16, 8, B2), dtype=tl.float32)
    for plane in range(count + K - 1):
        rotated = w + (plane % K) * steps * BK * (B1 + B2)
        for step in range(steps):
            k = step * BK + tl.arange(0, BK)
            tap = tl.minimum(k // C, K * K - 1)
            offset = ((tap // K) * x_row + tap % K) * DILATION * XS + k % C
            a = tl.load(x + rows[:, None] + offset[None, :])
            weights = rotated + k[:, None] * (B1 + B2)
            a1 = tl.dot(a, tl.load(weights + c1[None, :]), a1)
            if B2 > 0:
                a2 = tl.dot(a, tl.load(weights + c2[None, :]), a2)
        x += DILATION * x_plane * XS
        # The output plane that had its last tap.
        group = (plane + 1) % K * G
        done1 = ((c1 >= group) & (c1 < group + G))[None, :]
        if B2 > 0:
            done2 = ((c2 >= group) & (c2 < group + G))[None, :]
        if plane >= K - 1:
            tl.store(y + place + (c1 - group)[None, :], a1.to(y.dtype.element_ty), mask=inside & done1)
            if B2 > 0:
                tl.store(y + place + (c2 - group)[None, :], a2.to(y.dtype.element_ty), mask=inside & done2)
            y += DILATION * y_plane * YS
            if SUMS:
                counted = tl.where(inside & done1, a1, 0.0)
                s1 += _row_sums(counted, BM, B1)
                q1 += _row_sums(counted * counted, BM, B1)
                if B2 > 0:
                    counted = tl.where(inside & done2, a2, 0.0)
                    s2 += _row_sums(counted, BM, B2)
                    q2 += _row_sums(counted * counted, BM, B2)
        a1 = tl.where(done1, 0.0, a1)
        if B2 > 0:
            a2 = tl.where(done2, 0.0, a2)
    if SUMS:
        # Each group apart; they are added with those of the other programs.
        slot = ((batch * runs + run) * tl.num_programs(1) + tile) * K
        at = sums + (slot + c1 // G) * 2 * N + part * G + c1 % G
        tl.store(at, tl.sum(s1.reshape(BM // 2, B1), axis=0), mask=c1 < K * G)
        tl.store(at + N, tl.sum(q1.reshape(BM // 2, B1), axis=0), mask=c1 < K * G)
        if B2 > 0:
            at = sums + (slot + c2 // G) * 2 * N + part * G + c2 % G
            tl.store(at, tl.sum(s2.reshape(BM // 2, B2), axis=0), mask=c2 < K * G)
            tl.store(at + N, tl.sum(q2.reshape(BM // 2, B2), axis=0), mask=c2 < K * G)


@triton.jit(do_not_specialize=SIZES)
def add_parts_kernel(  # type: ignore[no-untyped-def]
    partial, y, sums, voxels, N, splits, BM: tl.constexpr, BN: tl.constexpr
):
    """Add the parts that `gemm_kernel` made with PARTIAL: partial (B, splits, voxels, N), y (B, voxels, N)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    m = block * BM + tl.arange(0, BM)
    mask = (m < voxels)[:, None] & (n < N)[None, :]
    offset = m[:, None] * N + n[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial + (batch * splits + split) * voxels * N + offset, mask=mask, other=0.0)
    tl.store(y + batch * voxels * N + offset, total.to(y.dtype.element_ty), mask=mask)
    place = sums + ((batch * tl.num_programs(1) + block) * 2) * N + n
    tl.store(place, tl.sum(total, axis=0), mask=n < N)
    tl.store(place + N, tl.sum(total * total, axis=0), mask=n < N)


@triton.jit(do_not_specialize=SIZES)
def double_kernel(  # type: ignore[no-untyped-def]
    x, w, y,
    depth, height, width, x_batch, x_plane, x_row, y_batch, y_plane, y_row,
    C, XS, N, YS,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Transposed convolution of edge and stride 2: each input voxel makes 2^3 output voxels.

    One program makes one of the eight for BM input voxels and BN channels. w is (8, C rounded up to BK, N).
    """
    blocks = tl.cdiv(N, BN)
    corner = tl.program_id(0) // blocks
    n = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    batch = tl.program_id(2).to(tl.int64)
    voxels = depth * height * width
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = m < voxels
    at = tl.minimum(m, voxels - 1)
    column = at % width
    line = at // width
    plane = line // height
    line = line % height
    rows = (plane * x_plane + line * x_row + column) * XS
    x += batch * x_batch * XS
    padded = tl.cdiv(C, BK) * BK
    w += corner * padded * N
    accumulator = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, C, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(x + rows[:, None] + k[None, :], mask=(k < C)[None, :], other=0.0)
        b = tl.load(w + k[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
        accumulator = tl.dot(a, b, accumulator)
    place = ((2 * plane + corner // 4) * y_plane + (2 * line + corner // 2 % 2) * y_row + 2 * column + corner % 2) * YS
    y += batch * y_batch * YS
    mask = inside[:, None] & (n < N)[None, :]
    tl.store(y + place[:, None] + n[None, :], accumulator.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(  # type: ignore[no-untyped-def]
    x, w, y, depth, height, width, x_batch, x_plane, x_row,
    C, XS, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Convolution of each channel by itself: x starts at tap (0, 0, 0), w (27, C), y (B, D, H, W, C)."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    voxels = depth * height * width
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    line = m // width
    place = ((line // height) * x_plane + (line % height) * x_row + m % width) * XS
    mask = (m < voxels)[:, None] & (c < C)[None, :]
    x += batch * x_batch * XS
    total = tl.zeros((BM, BC), dtype=tl.float32)
    for tap in range(27):
        offset = ((tap // 9) * x_plane + (tap // 3 % 3) * x_row + tap % 3) * XS
        values = tl.load(x + (place + offset)[:, None] + c[None, :], mask=mask, other=0.0)
        total += values.to(tl.float32) * tl.load(w + tap * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y + (batch * voxels + m)[:, None] * C + c[None, :], total.to(y.dtype.element_ty), mask=mask)
