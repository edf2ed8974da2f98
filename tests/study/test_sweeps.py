"""The tasks behind figures 1, 2, 4 to 7, the gallery and the errata, done again plainly."""

import numpy as np
import pytest
import torch
from torch import nn

from leery.attacks import BIM, FGSM, PGD, gaussian_noise
from leery.errors import StudyFileError
from leery.study import StudyConfig
from leery.study._as_printed import as_printed, bim_as_printed
from leery.study._config import Condition
from leery.study._gather import _crossing, _turning_points, gather
from leery.study._pictures import example, gallery
from leery.study._plan import plan
from leery.study._stages import evaluate, fit_detector, make_classifier, measure
from leery.study._sweeps import TRACED, Trace, first_flipped, load_trace, success, trace
from leery.study._workspace import Version, Workspace, read_arrays, read_json

BIM_12 = Condition("BIM", 0.12)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A study of 12 digits, its classifier, detector and tables made."""
    made = Workspace(StudyConfig("mnist", limit=12), tmp_path_factory.mktemp("workspace"))
    make_classifier(made)
    fit_detector(made)
    for version in (Version(), Version(sigma=0.12), Version(condition=BIM_12)):
        measure(made, version, 0)
    return made


def test_success_counts_the_labels_that_change(workspace: Workspace) -> None:
    images, labels = workspace.test_set()
    model = workspace.detector().model
    for condition, attack in ((BIM_12, BIM(0.12)), (Condition("FGSM", 0.5), FGSM(0.5))):
        success(workspace, condition)
        with torch.no_grad():
            changed = (model(attack(model, images, labels)).argmax(1) != labels).sum()
        found = read_json(workspace.success_file(condition))
        assert found == {"images": 12, "changed": int(changed)}
    success(workspace, Condition("PGD", 0.0))
    assert read_json(workspace.success_file(Condition("PGD", 0.0)))["changed"] == 0


def test_a_trace_holds_the_metrics_at_every_strength(workspace: Workspace) -> None:
    trace(workspace, "BIM", 0)
    found = load_trace(workspace, "BIM")
    images, labels = workspace.test_set()
    detector = workspace.detector()
    assert found.epsilons[[0, 1, -1]] == pytest.approx([0, 0.01, 0.30])
    assert found.source.tolist() == list(range(12))
    for step in (0, 12, 30):
        table = detector.measure(BIM(found.epsilons[step])(detector.model, images, labels))
        assert (found.predicted[step] == table.predicted).all()
        for metric in ("variance", "confidence", "kernel_density", "kl_divergence_sum"):
            assert found.values(metric)[step] == pytest.approx(table.column(metric), rel=1e-5)
    for place in np.flatnonzero(found.flips):
        flip = found.flip[place]
        assert (found.predicted[:flip, place] == labels[place].item()).all()
        assert found.predicted[flip, place] == found.target[place] != labels[place].item()
        # Held against the source while it is predicted, against the target once that is.
        for metric in ("kernel_density", "kl_divergence"):
            own = found.values(metric)
            before = found.values(metric, "source")[:flip, place]
            assert before == pytest.approx(own[:flip, place])
            after = found.values(metric, "target")[flip, place]
            assert after == pytest.approx(own[flip, place])


def plain_trace(source: list[float], target: list[float], predicted: list[int]) -> Trace:
    """A trace of one image of class 0 whose metrics of closeness are given."""
    steps = len(source)
    against = {
        name: np.repeat(np.array(values)[:, None, None], 3, axis=2)
        for name, values in (("to_source", source), ("to_target", target))
    }
    changes = [label for label in predicted if label != 0]
    return Trace(
        np.arange(steps) / 10,
        {
            "source": np.array([7]),
            "label": np.array([0]),
            "target": np.array([changes[0] if changes else -1]),
            "predicted": np.array(predicted)[:, None],
            "values": np.zeros((steps, 1, 7)),
            **against,
        },
    )


def test_lines_cross_where_the_target_becomes_closer() -> None:
    down, up = [-1.0, -2.0, -3.0, -4.0], [-4.0, -3.0, -2.0, -1.0]
    flipping = plain_trace(down, up, [0, 0, 1, 1])
    assert _crossing(flipping, "kernel_density").tolist() == [0.2]
    assert np.isnan(_crossing(flipping, "kl_divergence")).all()
    distances = plain_trace(up[::-1], down[::-1], [0, 1, 1, 1])
    assert np.isnan(_crossing(distances, "kernel_density")).tolist() == [False]
    # Closer from the start is no crossing, and without a change of label there is no target.
    assert np.isnan(_crossing(plain_trace(down, [0.0] * 4, [0, 0, 1, 1]), "kernel_density")).all()
    assert np.isnan(_crossing(plain_trace(down, up, [0, 0, 0, 0]), "kernel_density")).all()


def test_turning_points_are_those_of_each_trace_taken_alone(workspace: Workspace) -> None:
    for attack in TRACED:
        trace(workspace, attack, 0)
    rows = list(_turning_points(workspace))
    assert len(rows) == 2 * 12
    for row in rows:
        found = load_trace(workspace, row["attack"])
        place = found.source.tolist().index(row["source"])
        changed = [step for step in range(31) if found.predicted[step, place] != row["label"]]
        assert row["step"] == pytest.approx(0.01)
        if not changed:
            assert row["target"] == -1
            assert np.isnan(row["flip"])
            assert np.isnan(row["entropy_at_flip"])
            continue
        assert row["flip"] == pytest.approx(changed[0] / 100)
        assert row["target"] == found.predicted[changed[0], place]
        for metric in ("variance", "predictive_entropy", "mutual_information", "kl_divergence"):
            values = found.values(metric)[:, place].tolist()
            assert row[f"peak_{metric}"] == pytest.approx(values.index(max(values)) / 100)
        confidence = found.values("confidence")[:, place].tolist()
        assert row["peak_confidence"] == pytest.approx(confidence.index(min(confidence)) / 100)
        entropy = found.values("predictive_entropy")[:, place]
        assert row["entropy_at_flip"] == entropy[changed[0]]
        assert row["entropy_at_end"] == entropy[-1]
        for metric in ("kl_divergence", "kl_divergence_sum"):
            assert row[f"{metric}_at_end"] == found.values(metric)[-1, place]


def test_the_image_of_the_figures_is_the_first_that_every_attack_flips() -> None:
    def of(targets: list[int]) -> Trace:
        one = plain_trace([0.0], [0.0], [0])
        one.target = np.array(targets)
        return one

    assert first_flipped({"BIM": of([3, 4, 5]), "FGSM": of([-1, -1, 2])}) == 2
    assert first_flipped({"BIM": of([3, 4]), "FGSM": of([-1, -1])}) is None


def test_the_example_is_the_weakest_bim_that_flips_that_image(workspace: Workspace) -> None:
    for attack in TRACED:
        trace(workspace, attack, 0)
    example(workspace)
    found = read_arrays(workspace.picture_file("example"))
    traces = {name: load_trace(workspace, name) for name in TRACED}
    place = first_flipped(traces)
    assert place is not None
    assert found["source"] == traces["BIM"].source[place]
    clean, adversarial = found["pixels"]
    assert np.abs(adversarial - clean).max() <= found["epsilon"] + 1e-6
    assert found["predicted"][0] == found["label"] != found["predicted"][1]
    assert found["epsilon"] == traces["BIM"].epsilons[traces["BIM"].flip[place]]


def test_the_gallery_makes_the_judged_images_again(workspace: Workspace) -> None:
    evaluate(workspace, BIM_12)
    gallery(workspace, BIM_12)
    worst = read_json(workspace.evaluation_file(BIM_12))["worst"]
    pixels = read_arrays(workspace.picture_file(BIM_12.name))["pixels"]
    assert [entry["kind"] for entry in worst] == [
        "miss", "miss", "false alarm, clean", "false alarm, noisy",
    ]  # fmt: skip
    again = workspace.detector().measure(torch.from_numpy(pixels).unsqueeze(1))
    for place, entry in enumerate(worst):
        assert again.predicted[place] == entry["predicted"]
        assert again.column("kernel_density")[place] == pytest.approx(entry["kernel_density"])
    images, _ = workspace.test_set()
    clean = next(entry for entry in worst if entry["kind"].endswith("clean"))
    assert pixels[2] == pytest.approx(images[clean["source"], 0].numpy())
    noise = gaussian_noise(images, 0.12, seed=workspace.seed("noise-0.12"))
    noisy = next(entry for entry in worst if entry["kind"].endswith("noisy"))
    assert pixels[3] == pytest.approx(noise[noisy["source"], 0].numpy())


def test_bim_as_printed_is_the_clipped_step_alone() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(784, 2)
    model = nn.Sequential(nn.Flatten(), linear)
    images = torch.rand(3, 1, 28, 28)
    labels = torch.tensor([0, 1, 0])
    sign = torch.sign((linear.weight[1] - linear.weight[0]).detach()).reshape(1, 28, 28)
    step = torch.stack([sign, -sign, sign]) * 0.2 * 0.3
    expected = step.clamp(images - 0.3, images + 0.3).clamp(0, 1)
    assert torch.allclose(bim_as_printed(model, images, labels, 0.3), expected, atol=1e-6)


def test_the_readings_compare_both_kernels_and_both_bims(workspace: Workspace) -> None:
    success(workspace, BIM_12)
    as_printed(workspace, BIM_12)
    found = read_json(workspace.reading_file(BIM_12))
    assert found["changed"] == read_json(workspace.success_file(BIM_12))["changed"]
    assert found["changed_as_printed"] <= found["images"] == 12
    ours, printed = found["kernels"]
    assert printed["bandwidth"] == pytest.approx(ours["bandwidth"] / 2**0.5)
    assert 0.5 < ours["auc"] <= 1


def test_the_plan_names_a_file_a_task_and_gathering_misses_the_first_by_name(
    workspace: Workspace,
) -> None:
    tasks = [task for stage in plan([workspace]).values() for task in stage]
    assert len({task.file for task in tasks}) == len(tasks)
    assert all(task.cost > 0 for task in tasks)
    assert sum(task.done for task in tasks) >= 5
    with pytest.raises(StudyFileError, match="expected a stage file at .*evaluate"):
        gather([workspace])
    attack = PGD(0.3)(
        workspace.detector().model, *workspace.test_set(), seed=workspace.seed("PGD-0.30")
    )
    assert torch.equal(workspace.craft(Version(condition=Condition("PGD", 0.30)), 0), attack)
