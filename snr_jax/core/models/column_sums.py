"""Two sums over [N,H,W] for each channel, in one pass over a feature map: the sums of batch norm.

`terms(maps, vectors)` gives the two things to add up, from maps [...,C] and from vectors [C].
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from snr_jax.core.models.layers import at_least_float32

Pair = tuple[jax.Array, jax.Array]
Terms = Callable[[Sequence[jax.Array], Sequence[jax.Array]], Pair]

# Of a block and what reads it; programs: four for each of an H200's 132 multiprocessors. Other
# blocks, warps and numbers of programs were slower there over the network's sizes, by up to 1.7.
ROWS, COLUMNS, WARPS, PROGRAMS = 32, 64, 4, 528

# Partial sums: XLA has a sum of fewer than 32 done by what reads it, and starts a kernel for one of
# more. As groups of that size more can be, up to where loading them takes longer than a launch.
GROUP, MOST_IN_GROUPS = 31, 132


def two_sums(a: jax.Array, b: jax.Array) -> Pair:
    """Sums over [N,H,W] of two arrays [N,H,W,C].

    One reduction means fewer launches on a GPU; a CPU is faster with two. Both are equal.
    """
    return lax.platform_dependent(a, b, cpu=sums_apart, default=sums_together)


def sums_apart(a: jax.Array, b: jax.Array) -> Pair:
    return a.sum((0, 1, 2)), b.sum((0, 1, 2))


def sums_together(a: jax.Array, b: jax.Array) -> Pair:
    zero = jnp.zeros([], a.dtype)

    def add(x: tuple, y: tuple) -> Pair:
        return x[0] + y[0], x[1] + y[1]

    return lax.reduce((a, b), (zero, zero), add, (0, 1, 2))


def column_sums(
    terms: Terms, maps: Sequence[jax.Array], vectors: Sequence[jax.Array], form: str,
    in_groups: bool = True,
) -> Pair:
    """The sums [C], [C] of `terms` of maps [N,H,W,C] and vectors [C], in at least float32.

    form: "xla", a reduction that XLA fuses with the terms; or "pallas", a faster kernel for a GPU,
    which a CPU interprets, slowly: for tests. Channels that are no multiple of a block's take the
    first form. Both are equal. in_groups: what reads the sums may add the kernel's partial sums up
    itself, which saves a launch.
    """
    channels = maps[0].shape[-1]
    if form == "xla" or channels % COLUMNS:
        return two_sums(*terms([at_least_float32(x) for x in maps], vectors))
    rows = [x.reshape(-1, channels) for x in maps]  # no copy: the same order in memory

    def run(*operands: jax.Array, interpret: bool) -> jax.Array:
        return _partial_sums(terms, operands[: len(rows)], operands[len(rows):], interpret)

    partials = lax.platform_dependent(
        *rows, *vectors, cpu=partial(run, interpret=True), default=partial(run, interpret=False)
    )
    if in_groups and partials.shape[1] <= MOST_IN_GROUPS:
        return _sum_of_groups(partials[0]), _sum_of_groups(partials[1])
    sums = partials.sum(1)  # as one array: as a pair it takes another 100 launches a step
    return sums[0], sums[1]


def _sum_of_groups(partials: jax.Array) -> jax.Array:
    """The sum [C] of partial sums [parts,C]."""
    return sum(partials[i : i + GROUP].sum(0) for i in range(0, len(partials), GROUP))


def _partial_sums(
    terms: Terms, maps: Sequence[jax.Array], vectors: Sequence[jax.Array], interpret: bool
) -> jax.Array:
    """Sums [2,parts,C] over parts of the rows of maps [M,C].

    Each program adds its own part up and writes it: atomic additions would come in another order
    in every run, and give other numbers.
    """
    height, channels = maps[0].shape
    blocks = pl.cdiv(height, ROWS)
    parts = max(1, min(blocks, PROGRAMS * COLUMNS // channels))
    dtype = jnp.promote_types(maps[0].dtype, jnp.float32)

    def kernel(*refs) -> None:
        part, columns = pl.program_id(0), pl.ds(pl.program_id(1) * COLUMNS, COLUMNS)
        *inputs, out = refs
        here = [ref[columns][None] for ref in inputs[len(maps):]]

        def add(i: jax.Array, sums: Pair) -> Pair:
            start = (i * parts + part) * ROWS
            inside = (start + lax.broadcasted_iota(jnp.int32, (ROWS, COLUMNS), 0)) < height
            at = pl.ds(start, ROWS), columns
            read = [triton.load(ref.at[at], mask=inside, other=0) for ref in inputs[: len(maps)]]
            found = terms([x.astype(dtype) for x in read], here)
            return tuple(total + jnp.where(inside, x, 0) for total, x in zip(sums, found))

        zero = jnp.zeros((ROWS, COLUMNS), dtype)
        for k, total in enumerate(lax.fori_loop(0, pl.cdiv(blocks, parts), add, (zero, zero))):
            out[k, part, columns] = total.sum(0)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((2, parts, channels), dtype),
        grid=(parts, channels // COLUMNS),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=interpret,
        name="batch_norm_sums",
    )(*maps, *vectors)
