"""The house in order: import directions, public names, sizes, no copies of the errors' tree."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import leery
from leery import errors

ROOT = Path(leery.__file__).parent

# From the ground floor up: a module may import from floors above it in this list only.
FLOORS = [
    {"names"},
    {"errors", "_not_fitted"},
    {"_checks", "_extras", "_files", "_progress"},
    {"_recorded", "tuning", "calibration", "intervals"},
    {"tasks", "reporting"},
    {"data", "inputs"},
    {"models"},
    {"mc_dropout"},
    {"observation"},
    {"attacks"},
    {"training"},
    {"classifiers"},
    {"certify"},
    {"metrics"},
    {"combiners"},
    {"detector"},
    {"baselines"},
    {"evaluation"},
    {"scoring"},
    {"study", "arena", "cluster"},
    {"cli"},
    {"__main__"},
]
PROGRAMS = {"study", "arena", "cluster", "cli", "__main__"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import of leery's own: the room and the whole module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "leery":
                yield (parts[1] if len(parts) > 1 else ""), name


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_up_the_list(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        assert not {name for name, _ in imports(path)} & PROGRAMS
        return
    for name, whole in imports(path):
        if {name, own} == {"errors", "_not_fitted"}:
            continue
        if not name or not ((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()):
            assert own in PROGRAMS, f"{whole} imports the package from within the library"
        elif name != own:
            assert floor(name) < floor(own), f"{own} must not import {whole}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_modules_are_private_to_their_package(path: Path) -> None:
    for name, whole in imports(path):
        private = [part for part in whole.split(".")[2:] if part.startswith("_") and part[1] != "_"]
        assert not private or name == room(path), f"{path.name} reaches into {whole}"


PUBLIC = {
    "leery": """CorruptDataError DataError Detector DetectorFileError InputError
        LeeryError LeeryWarning MachineError MCDropout METRICS MetricTable NoDropoutError
        NotFittedError OutputError PAPER_METRICS RECOMMENDED_METRICS UnknownLayerError
        UnsupportedModelError Verdicts WrongModelError __version__""",
    "leery.attacks": """ADAPTED AdaptedAttack Attack BIM BoundedAttack CORRUPTIONS Corruption
        CrossEntropy FGSM GradientAttack HARMLESS Harmless NormName Objective ObjectiveOf
        PGD Preset check_harmless gaussian_noise placed""",
    "leery.attacks.adaptive": """Accepted ActiveTest BacktrackingPGD CarliniWagner Decisions
        Evasion Excess FalseAlarm FeatureMatching Indicators Joint Orthogonal Selective
        SmallestEvasion SquareSearch Target Targeted Weighted active_test adaptive_attacks
        indicators worst_case""",
    "leery.calibration": "Calibration Promise",
    "leery.certify": """Box Ramp Sentinel SentinelTraining interval_bounds margin_bounds
        pretrained_sentinel""",
    "leery.classifiers": """Classifier DigitNet FashionNet HARDENED RECIPES Recipe ResNet20
        accuracy build load_classifier pretrained save_classifier train""",
    "leery.cluster": "OnRay Scorer score",
    "leery.combiners": """ConformalCombiner COMBINERS Combiner CombinerName
        EXPONENT FAMILY_WEIGHTS Facts LogisticCombiner MonotoneLogisticCombiner make_combiner""",
    "leery.data": "DATASETS NamedDataset cache_folder data_sums load named parse_idx",
    "leery.detector": """Detector Explanation FileFit MetricTable SavedDetector Verdict
        Verdicts describe file_fit_of recommended_metrics""",
    "leery.errors": """CorruptDataError DataError DetectorFileError InputError LeeryError
        LeeryWarning MachineError NoDropoutError NotFittedError OutputError StudyFileError
        UnknownLayerError UnsupportedModelError WrongModelError""",
    "leery.evaluation": """Abstention Detection FOLDS Interval POSITIVES PROTOCOLS Pool
        Positives Protocol abstention alarm_rows cross_fit detection evaluate
        AdaptiveEvaluation certificates certified_shares evaluate_adaptive
        every_attack_found false_alarms held_out_scores in_sample_scores
        mean_difference robust_error roc_auc_difference roc_auc_interval
        select_positives share_difference share_interval target_of tpr_at_fpr""",
    "leery.inputs": """Channels Cuts Format Images InputSpec Item Moments batches bounds_seen
        count halves image_batches item_of known_count labelled_batches load
        load_labelled rows_at_once printable read""",
    "leery.mc_dropout": """MCDropout MAX_PASSES MaskSource Passes Plan StochasticLayer
        insert_dropout""",
    "leery.metrics": """AuxiliaryAgreement BandwidthRule BoundaryDistance
        CLOSENESS_METRICS ClassKL Direction FitContext ForwardPass IMAGE InputStatistic
        KINDS KernelDensity LogitFeatureShift METRICS Mahalanobis Metric
        NearestNeighbours NoiseConsistency PAPER_METRICS PassUncertainty Pmf Precision
        RECOMMENDED_METRICS References ShiftConsistency Squeezing TrainingPoints
        UNCERTAINTY_METRICS UnitDispersion aleatoric bhattacharyya confidence direction_of energy
        epistemic load_metrics make_metrics log_margin margin max_softmax median_residual
        metric_refused mutual_information predictive_entropy recommended_for residual_kurtosis
        scibilic variance""",
    "leery.models": """INPUT_OF Logits assignments_undone check_layer check_logits check_recorded
        check_repeatable content_hashes device_of extract_features fast_layout
        fingerprint forward grid_of has_fast_layout has_linear_head image_hashes
        isolated keep_freed_memory last_hidden_layer load_model loaded_object
        logits_facts logits_of_facts model_errors multiplications normalized own_tensors
        predict python_randomness recorded_layers run_fast run_model
        submodules_of_images two_images unwrapped user_code with_layout with_logits""",
    "leery.observation": "EACH FittableScorer HEAD Needs Observation Observer Scorer View Viewed",
    "leery.reporting": """Cell INK MUTED PALETTE Plot Sheet figure_style new_figure page_environment
        page_resource themed to_svg""",
    "leery.scoring": "Scoring Summary row_schema rows_of score_to_file scoring_of",
    "leery.study": """Condition METRIC_SETS PAGE RESULT_COLUMNS STUDIES StudyConfig StudyResult
        load_result report reproduce reproduce_all terminal_summary""",
    "leery.tasks": """Advance Clock Engine FileTask Parts Processes Progress Shard Task Work Workers
        code_of compute_missing compute_part default_workers
        identity_of missing_tasks no_progress open_parts parts_folder read_seconds run_record
        run_shard run_stages
        single_threaded worker_count worker_pool write_seconds""",
    "leery.training": """Augmentation AuxiliaryNetwork AuxiliaryRecipe FitParts MAX_PIXELS Recipe
        SentinelNetwork SentinelRecipe TrainingSet run_epochs saved_tensors
        train_auxiliary train_sentinel""",
    "leery.arena": """ARENAS ArenaConfig Cell DETECTORS Entry PAGE run_arena run_arena_shard
        summary""",
    "leery.baselines": """BASELINES DeepNeighbours DeepNeighboursBaseline DetectorSubnetwork
        FeatureSqueezing IntrinsicDimensionality KernelDensityUncertainty LaterMetrics
        LayerMahalanobis LocalIntrinsicDimensionality MetricBaseline Odds
        PaperDetector SingleMetric StandardisedOdds SupervisedBaseline""",
    "leery.names": """ATTACKS ATTACKS_OF_LIBRARIES BASELINES CLOSENESS_METRICS
        IMAGE_BASELINES METRICS PAPER_METRICS RECOMMENDED_METRICS SENTINELS
        SUPERVISED_BASELINES UNCERTAINTY_METRICS""",
    "leery.tuning": """CACHED_ELEMENTS CLOSENESS_IMAGES CLOSENESS_PIXELS CONVERTED
        ELEMENTS_AT_ONCE FEW_IMAGES FREED_BYTES IMAGES_AT_ONCE IMAGES_OF_A_THREAD
        MAX_PREPARED MAX_RESIDENT NARROW_FILTERS QUERIES REFERENCES SELECTED_ELEMENTS
        SHARED_ELEMENTS UNCERTAINTY_ELEMENTS WHOLE_MODEL""",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert sorted(module.__all__) == sorted(PUBLIC[name].split())
    for public in module.__all__:
        found = getattr(module, public)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), public


def test_every_error_also_has_a_usual_type_and_stands_in_the_drawn_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, Warning):
            continue
        assert issubclass(kind, errors.LeeryError)
        if kind is not errors.LeeryError:
            assert issubclass(kind, (ValueError, OSError, RuntimeError))
        assert errors.__doc__ is not None
        assert name in errors.__doc__


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function with its lines of code: no blanks, comments or docstring."""
    text = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        body = node.body
        assert node.end_lineno is not None
        start = node.lineno
        skipped: set[int] = set()
        if ast.get_docstring(node) is not None:
            skipped = set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        lines = [
            text[number - 1].strip()
            for number in range(start, node.end_lineno + 1)
            if number not in skipped
        ]
        yield node.name, sum(1 for line in lines if line and not line.startswith("#"))


def test_no_function_is_longer_than_50_lines_of_code() -> None:
    sizes = [
        (count, f"{path.name}:{name}") for path in modules() for name, count in functions(path)
    ]
    assert [entry for entry in sizes if entry[0] > 50] == []
    counts = sorted(count for count, _ in sizes)
    assert counts[len(counts) // 2] <= 8


def test_no_module_is_called_utils() -> None:
    assert not [path for path in modules() if re.search("util|helper|misc|common", path.stem)]
