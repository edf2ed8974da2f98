"""The fit to training data in files, in parts: what passes between processes."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from leery import Detector
from leery.baselines.odds import StandardisedOdds
from leery.detector import FileFit
from leery.errors import InputError, LeeryWarning
from leery.inputs import Format, _cuts
from leery.metrics import Metric
from leery.observation import HEAD, Needs, Observation
from leery.tasks import Shard
from leery.training import FitParts


class Net(nn.Module):
    """A few pixels in, two classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.body = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(self.flat(images))
        return out


class Gathering(Metric):
    """The mean length of the features, summed in attributes."""

    name, family = "gathering", "size"
    needs = Needs(layers=(HEAD,))
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.total, self.count = 0.0, 0

    def update(self, seen: Observation, labels: Tensor) -> None:
        self.total += float(seen.layers[HEAD].flatten(1).double().norm(dim=1).sum())
        self.count += len(labels)

    def merge(self, other: "Gathering") -> None:
        self.total += other.total
        self.count += other.count

    def finish(self) -> None:
        self.mean = torch.tensor(self.total / self.count, dtype=torch.float64)

    def forward(self, seen: Observation) -> Tensor:
        lengths: Tensor = seen.layers[HEAD].flatten(1).double().norm(dim=1)
        return lengths - self.mean


class Hiding(Gathering):
    """The same, in an attribute and a parameter of a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.inner.seen = 0  # type: ignore[assignment]

    def update(self, seen: Observation, labels: Tensor) -> None:
        super().update(seen, labels)
        self.inner.seen = self.count  # type: ignore[assignment]
        self.scale.add_(1)


class Passing(Gathering):
    """The same, which passes its sums between processes."""

    def learned(self) -> dict[str, Tensor]:
        return {"sums": torch.tensor([self.total, self.count], dtype=torch.float64)}

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        self.total, count = state["sums"].tolist()
        self.count = int(count)


class Alone(Gathering):
    """A metric that cannot be merged."""

    merge = Metric.merge  # type: ignore[assignment]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty labelled images, in parts of eight."""
    monkeypatch.setattr(_cuts, "_ROWS", (8, 8))
    path = tmp_path / "train.npz"
    images = np.random.default_rng(0).random((30, 1, 4, 4), np.float32)
    np.savez(path, images=images, labels=np.arange(30) % 2)
    return path


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def fit(path: Path, folder: str, *metrics: str | Metric) -> FileFit:
    chosen = metrics or ("mahalanobis", "nearest_neighbours", "kernel_density", "kl_divergence")
    detector = Detector(net(), metrics=chosen)
    return FileFit(detector, [path], Format(), FitParts(path.parent / folder, resume=True))


def test_shards_give_the_detector_of_one_run_and_of_the_images_themselves(
    data: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    whole = fit(data, "whole").run(progress=lambda *now: told.append(now))
    assert told == [(0, 30), (8, 30), (16, 30), (24, 30), (30, 30)]
    for number in (3, 1, 2):
        fit(data, "shards").run_shard(Shard(number, 3))
    merging = fit(data, "shards")
    merged = merging.merge()
    arrays = np.load(data)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    plain = Detector(net(), metrics=list(whole.metrics)).fit(batches)
    for name, found in {"whole": whole, "merged": merged, "plain": plain}.items():
        found.save(tmp_path / f"{name}.leery")
    one = (tmp_path / "whole.leery").read_bytes()
    assert (tmp_path / "merged.leery").read_bytes() == one
    assert (tmp_path / "plain.leery").read_bytes() == one
    merging.discard()
    assert not (tmp_path / "shards" / "learned").exists()


def test_a_metric_that_gathers_in_attributes_must_pass_them(data: Path) -> None:
    with pytest.raises(InputError, match="'gathering' to keep what update.* changes to count, tot"):
        fit(data, "refused", Gathering()).run()
    with pytest.raises(
        InputError, match="got changes to count, inner.seen, scale, total; register buffers"
    ):
        fit(data, "hidden", Hiding()).run()
    found = fit(data, "passed", Passing()).run()
    arrays = np.load(data)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    plain = Detector(net(), metrics=[Gathering()]).fit(images, labels)
    means = [
        float(one.metrics_["gathering"].mean)  # type: ignore[arg-type]
        for one in (found, plain)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-12)
    assert means[0] > 0


class Scaled(Passing):
    """A metric with a setting that it does not tell as an option."""

    def __init__(self, scale: object) -> None:
        super().__init__()
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale


class Other(Scaled):
    """Another metric of the same name."""


@pytest.mark.parametrize(
    ("made", "otherwise"),
    [
        (partial(Scaled, 1.0), partial(Scaled, 2.0)),
        (partial(Scaled, (1, 2)), partial(Scaled, (1, 2, 4))),
        (partial(Scaled, {"a": [1]}), partial(Scaled, {"a": [2]})),
        (partial(Scaled, {(0, 1): 1, None: 2}), partial(Scaled, {(0, 1): 1, None: 3})),
        (partial(Scaled, torch.ones(1)), partial(Scaled, torch.zeros(1))),
        (partial(Scaled, 1.0), partial(Other, 1.0)),
    ],
)
def test_parts_of_a_metric_that_was_made_otherwise_are_refused(
    data: Path, made: Callable[[], Metric], otherwise: Callable[[], Metric]
) -> None:
    fit(data, "scaled", made()).run_shard(Shard(1, 2))
    with pytest.raises(InputError, match="settings, device and versions with which .* got diff"):
        fit(data, "scaled", otherwise()).run_shard(Shard(2, 2))
    fit(data, "scaled", made()).run_shard(Shard(2, 2))
    assert fit(data, "scaled", made()).merge().accuracy_ is not None


def test_parts_of_a_metric_that_was_made_the_same_way_are_resumed(data: Path) -> None:
    fit(data, "scaled", Scaled({"a": [1], "b": 2})).run_shard(Shard(1, 2))
    fit(data, "scaled", Scaled(defaultdict(list, b=2, a=[1]))).run_shard(Shard(2, 2))


def test_a_metric_that_cannot_be_merged_is_refused_where_parts_are_needed(data: Path) -> None:
    with pytest.raises(InputError, match="got 'gathering', which does not implement merge"):
        fit(data, "alone", Alone())
    arrays = np.load(data)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    alone, merged = (
        Detector(net(), metrics=[metric]).fit(batches).metrics_["gathering"].mean
        for metric in (Alone(), Gathering())
    )
    assert float(alone) == pytest.approx(float(merged), rel=1e-12)  # type: ignore[arg-type]


def test_learned_tensors_of_any_layout_are_stored(data: Path) -> None:
    found = fit(data, "odds", StandardisedOdds()).run()
    assert float(found.metrics_["standardised_odds"].counts.sum()) == 30  # type: ignore[operator]


def test_files_that_are_not_images_are_skipped_and_counted(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "notes.txt").write_text("no image")
        for number in range(3):
            image = Image.fromarray(np.full((4, 4), 40 * number + ord(label), np.uint8))
            image.save(tmp_path / "train" / label / f"{number}.png")
    with pytest.warns(LeeryWarning, match="2 files that are not images were skipped"):
        found = fit(tmp_path / "train", "parts", "kl_divergence").run()
    assert found.accuracy_ is not None


def test_an_output_in_the_training_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(InputError, match="expected an output outside the data .*train, got"):
        fit(tmp_path / "train", "train/parts", "kl_divergence")
    assert not (tmp_path / "train" / "parts").exists()


def test_a_part_that_is_torn_is_learned_again(data: Path, tmp_path: Path) -> None:
    fit(data, "torn").run_shard(Shard(1, 1))
    torn = min((tmp_path / "torn" / "learned").glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(InputError, match="expected parts 1-4 in .*learned, got no file for 1;"):
        fit(data, "torn").merge()
    fit(data, "torn").run_shard(Shard(1, 2))
    assert fit(data, "torn").merge().accuracy_ is not None
