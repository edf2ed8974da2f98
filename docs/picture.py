"""Draw the README's picture: a digit, its attack, the verdicts and their reasons.

    python docs/picture.py

It runs the README's example and takes what it draws from its detector: docs/images/verdict.svg, and
the numbers in it, verdict.json, which tests/test_readme.py holds to a run of the example.
"""

import json
import re
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

README = Path(__file__).resolve().parent.parent / "README.md"
IMAGES = Path(__file__).resolve().parent / "images"

FAMILIES = {
    "agreement": "another answer by\nthe auxiliary network",
    "consistency": "another answer under\nnoise or squeezing",
    "shift": "another answer\nafter a shift",
}
"""What a large contribution of a family of metrics says."""

SHOWN = 9
"""The place of the shown image among those that the example judges."""

INK, FLAGGED, PASSED = "#1f2933", "#c2410c", "#0f766e"


def example(readme: Path = README) -> dict[str, Any]:
    """The names that the README's example leaves, after it has run."""
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own README
    return names


def facts(names: Mapping[str, Any]) -> dict[str, Any]:
    """What the picture says of the image and of its adversarial version."""
    detector = names["detector"]
    families = {name: metric.family for name, metric in detector.metrics_.items()}
    found: dict[str, Any] = {"truth": int(names["truth"][3000 + SHOWN])}
    for kind in ("clean", "attacked"):
        images = names["clean"][3000:] if kind == "clean" else names["attacked"]
        verdicts = detector.judge(images[SHOWN : SHOWN + 1])
        shares: dict[str, float] = {}
        for name, share in zip(verdicts.names, verdicts.contributions[0], strict=True):
            shares[families[name]] = shares.get(families[name], 0.0) + float(share)
        found[kind] = {
            "predicted": int(verdicts.predicted[0]),
            "probability": float(verdicts.probabilities[0].max()),
            "p_value": float(verdicts.p_value[0]),
            "adversarial": bool(verdicts.adversarial[0]),
            "contributions": shares,
        }
    return found


def draw(names: Mapping[str, Any], found: Mapping[str, Any]) -> Figure:
    """The image, its adversarial version, and what each family of metrics says of the two."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "leery", "font.size": 10})
    figure = Figure(figsize=(10, 3.1), layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1.5))
    _image(left, names["clean"][3000 + SHOWN, 0], "clean", found["clean"])
    _image(middle, names["attacked"][SHOWN, 0], "attacked", found["attacked"])
    families = list(found["attacked"]["contributions"])
    for offset, kind in ((-0.19, "clean"), (0.19, "attacked")):
        shares = [found[kind]["contributions"][family] for family in families]
        places = [place + offset for place in range(len(families))]
        right.barh(places, shares, 0.34, color=PASSED if kind == "clean" else FLAGGED)
    right.set_yticks(range(len(families)), [FAMILIES.get(name, name) for name in families])
    right.invert_yaxis()
    right.set_xlabel("contribution to the score")
    right.spines[["top", "right"]].set_visible(False)
    colours = {"clean": PASSED, "attacked": FLAGGED}
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    right.legend(handles=handles, frameon=False, loc="lower right")
    return figure


def _image(axes: Axes, image: Any, kind: str, own: Mapping[str, Any]) -> None:  # noqa: ANN401 - a tensor
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    verdict = "adversarial" if own["adversarial"] else "passed"
    axes.set_title(f"{kind}: {own['predicted']} ({own['probability']:.0%})", color=INK)
    axes.set_xlabel(
        f"p = {own['p_value']:.2g}: {verdict}",
        fontsize=10,
        color=FLAGGED if own["adversarial"] else PASSED,
        weight="bold",
    )


def main() -> None:
    """Run the example and write the picture and its numbers."""
    # The example saves its detector in the working directory.
    with TemporaryDirectory() as folder, chdir(folder):
        names = example()
    found = facts(names)
    figure = draw(names, found)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "verdict.svg", metadata={"Date": None})
    (IMAGES / "verdict.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
