"""Put neurons that work together side by side, so that a block of them is wanted or left out as a whole.

Pure functions of arrays. S tokens, F neurons, B blocks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_ROUNDS: Final = 12


def order_neurons(activity: Floats, block: int, unit: int) -> NDArray[np.int32]:
    """A permutation [F] of neurons under which blocks of `block` neurons are alike.

    activity  [S, F]  how much each neuron contributes to each token's output, not negative
    unit      neurons that must stay together in their order: columns of a weight that share a scale

    Units are grouped by balanced k-means over their activity. Where a unit is a whole block or more, nothing moves.
    """
    count = activity.shape[1]
    if unit >= block:
        return np.arange(count, dtype=np.int32)
    units = np.sqrt(np.square(activity).reshape(len(activity), -1, unit).sum(-1)).T
    labels = group_evenly(np.ascontiguousarray(units, np.float32), count // block)
    places = np.argsort(labels, kind="stable")
    return (places[:, None] * unit + np.arange(unit)).reshape(-1).astype(np.int32)


def group_evenly(points: Floats, groups: int) -> NDArray[np.int64]:
    """Labels [N] of points [N, S], each of `groups` labels equally often; `groups` divides N. Always the same.

    Lloyd's rounds from an order along the first principal axis; in each, points that would lose most by a second choice
    choose first.
    """
    size = len(points) // groups
    centred = points - points.mean(axis=0)
    axis = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    labels = np.empty(len(points), np.int64)
    labels[np.argsort(axis, kind="stable")] = np.arange(len(points)) // size
    for _ in range(_ROUNDS):
        centres = np.stack([points[labels == group].mean(axis=0) for group in range(groups)])
        distances = np.square(centres).sum(axis=1) - 2.0 * points @ centres.T
        found = _assign(distances, size)
        if np.array_equal(found, labels):
            break
        labels = found
    return labels


def _assign(distances: Floats, size: int) -> NDArray[np.int64]:
    """Each point to the nearest group that has room."""
    count, groups = distances.shape
    labels, room = np.empty(count, np.int64), np.full(groups, size)
    if groups == 1:
        return np.zeros(count, np.int64)
    two = np.partition(distances, 1, axis=1)[:, :2]
    wishes = np.argsort(distances, axis=1, kind="stable")
    for point in np.argsort(two[:, 0] - two[:, 1], kind="stable"):
        group = next(wish for wish in wishes[point] if room[wish])
        labels[point], room[group] = group, room[group] - 1
    return labels
