"""A number for each row of a table that stands for all its values.

Two rows have the same number if, and but for a chance of 2^-64 only if, every column is the
same, bit for bit: unknown differs from 0, -0 from 0, and NaN equals itself, which no
comparison of numbers would say.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = NDArray[np.uint64]

UNKNOWN = np.uint64(0x9E3779B97F4A7C15)


def digests(table: pa.Table) -> Numbers:
    """The number of each row. The order of the columns counts, how rows are chunked does not."""
    found = np.zeros(len(table), np.uint64)
    for column in table.columns:
        here = np.concatenate([_of(chunk) for chunk in column.chunks] or [found[:0]])
        found = _mixed(found + here)
    return found


def _of(array: pa.Array) -> Numbers:
    import pyarrow as pa

    if pa.types.is_list(array.type):
        found = _of_lists(array)
    elif pa.types.is_string(array.type):
        found = _of_strings(array)
    elif pa.types.is_floating(array.type):
        found = array.fill_null(0.0).to_numpy(zero_copy_only=False).view(np.uint64)
    else:
        number = array.cast(pa.int64()).fill_null(0)
        found = number.to_numpy(zero_copy_only=False).view(np.uint64)
    unknown = array.is_null().to_numpy(zero_copy_only=False)
    return _mixed(np.where(unknown, UNKNOWN, _mixed(found)))


def _of_strings(array: pa.Array) -> Numbers:
    """Each different text is hashed once."""
    coded = array.dictionary_encode()
    words = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        for text in coded.dictionary.to_pylist()
    ]
    places = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(np.array([*words, 0], np.uint64)[places])


def _of_lists(array: pa.Array) -> Numbers:
    """What is in a list, each element with its place."""
    import pyarrow.compute as pc

    counts = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    inside = _of(array.flatten())  # of lists that are known
    place = np.arange(len(inside)) - np.repeat(ends - counts, counts)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(_mixed(inside + place.astype(np.uint64)))])
    return np.asarray(sums[ends] - sums[ends - counts])


def _mixed(numbers: Numbers) -> Numbers:
    """Each number made into one that depends on all its bits (the end of SplitMix64)."""
    mixed = numbers + UNKNOWN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
