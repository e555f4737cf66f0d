"""The intervals of the rating analysis hold what they promise: simulated raters of known taste, many studies at fixed seeds."""

from functools import cache

import numpy as np
import pytest
from fromage.core import metrics
from fromage.core.metrics import bootstrap
from fromage.study.preferences import share_estimates
from fromage.study.rehearsal import Taste, simulate_scores, true_shares

SIMULATIONS, SYSTEMS = 200, ("A", "B", "C")
TASTE = Taste({"better": dict(zip(SYSTEMS, (0.0, 0.4, 0.8)))}, spread=0.7, lapse=0.1, side=0.5)  # bias, noise, and a liking of one side


@pytest.mark.slow
def test_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % intervals of the shares and of their differences, the effect sizes, cover the truth in 91 to 98 % of 200 studies.

    Twenty sets of draws are made once and used in turn, which keeps the test short.
    """
    drawn = cache(lambda *values, original=metrics.draws: list(original(*values)))
    monkeypatch.setattr(metrics, "draws", drawn)
    truth, covered = true_shares(TASTE, "better", draws=2_000_000), {name: [] for name in (*SYSTEMS, "C - A", "B - A")}
    for seed in range(SIMULATIONS):
        scores, draw = simulate_scores(TASTE, "better", items=60, ratings=4, seed=seed), {"seed": seed % 20}
        found = share_estimates(scores, SYSTEMS, **draw)
        for name in SYSTEMS:
            covered[name].append(found[name].low <= truth[name] <= found[name].high)
        for name in ("C", "B"):
            effect = bootstrap(scores[name] - scores["A"], scores["story"], **draw)
            covered[f"{name} - A"].append(effect.low <= truth[name] - truth["A"] <= effect.high)
    rates = {name: float(100 * np.mean(values)) for name, values in covered.items()}
    print(rates)
    assert all(91 <= rate <= 98 for rate in rates.values()), rates


def test_intervals_that_ignore_items_are_too_short() -> None:
    """The same without drawing items whole: the check above can fail, and would."""
    wild = Taste(TASTE.strengths, spread=3.0)
    truth, covered = true_shares(wild, "better"), []
    for seed in range(60):
        scores = simulate_scores(wild, "better", items=20, ratings=12, seed=seed)
        found = bootstrap(scores["A"], None, seed=seed, samples=200)
        covered.append(found.low <= truth["A"] <= found.high)
    assert np.mean(covered) < 0.8, np.mean(covered)
