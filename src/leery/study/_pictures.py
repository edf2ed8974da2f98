"""Tasks that make the images of figure 1 and the gallery."""

import numpy as np
import torch

from leery.study._config import Condition
from leery.study._sweeps import TRACED, first_flipped, load_trace
from leery.study._workspace import SHARD, Version, Workspace, read_json, write_arrays

__all__ = ["EXAMPLE_ATTACK", "example", "gallery"]

EXAMPLE_ATTACK = TRACED[0]
"""The attack of figure 1."""


def example(workspace: Workspace) -> None:
    """Write figure 1: an image and its adversarial version, at the smallest strength that flips it.

    The file holds ``pixels`` ``(2, 28, 28)``, clean and adversarial, ``predicted`` ``(2,)``,
    ``confidence`` ``(2,)``, ``source``, ``label`` and ``epsilon``; it is empty if no image changes
    its label.
    """
    traces = {attack: load_trace(workspace, attack) for attack in TRACED}
    place = first_flipped(traces)
    if place is None:
        write_arrays(workspace.picture_file("example"))
        return
    trace = traces[EXAMPLE_ATTACK]
    epsilon = float(trace.epsilons[trace.flip[place]])
    source = int(trace.source[place])
    images, labels = (part[source : source + 1] for part in workspace.test_set())
    detector = workspace.detector()
    adversarial = Condition(EXAMPLE_ATTACK, epsilon).make()(detector.model, images, labels)
    both = torch.cat([images, adversarial])
    table = detector.measure(both)
    write_arrays(
        workspace.picture_file("example"),
        pixels=both.squeeze(1).numpy(),
        predicted=table.predicted,
        confidence=table.column("confidence"),
        source=np.array(source),
        label=labels.numpy(),
        epsilon=np.array(epsilon),
    )


def gallery(workspace: Workspace, condition: Condition) -> None:
    """Write the images of a condition's worst misses and false alarms, ``pixels`` (n, 28, 28).

    They are regenerated from their seeds, in the order of the evaluation file.
    """
    worst = read_json(workspace.evaluation_file(condition))["worst"]
    versions = {
        "miss": Version(condition=condition),
        "false alarm, clean": Version(),
        "false alarm, noisy": Version(sigma=condition.epsilon),
    }
    pixels = []
    for entry in worst:
        start = entry["source"] // SHARD * SHARD
        shard = workspace.craft(versions[entry["kind"]], start)
        pixels.append(shard[entry["source"] - start, 0].numpy())
    write_arrays(workspace.picture_file(condition.name), pixels=np.stack(pixels))
