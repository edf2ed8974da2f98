"""What the arena's command prints of its tables."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from leery.cli import app

BOARD = pd.DataFrame(
    {
        "seed": 0,
        "detector": ["a", "mine"],
        "learns_from_attacks": [True, False],
        "error": [
            "",
            "ValueError: expected [batch, 10], got [/x] " + "of any length " * 10 + "end",
        ],
        "worst_attack_at_1_fpr": ["DDN", None],
        "worst_at_1_fpr": [0.25, np.nan],
        "mean_at_1_fpr": [0.5, np.nan],
        "false_alarms_at_1_fpr": [0.01, np.nan],
    }
)


def test_errors_stand_whole_and_as_they_are_below_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only the tables are needed, which a run would make in minutes.
    monkeypatch.setattr("leery.arena.run_arena", lambda *_, **__: {"leaderboard": BOARD})
    done = CliRunner().invoke(app, ["arena", "mnist", "--out", "x"])
    assert done.exit_code == 3, done.output
    assert f"mine: {BOARD.error[1]}\n" in done.stdout
    first, second = (line for line in done.stdout.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        *("a *", "DDN", "0.25", "0.50", "1.0%")
    ]
    assert "error: see below" in second
