"""Comparisons held against scipy where scipy has the case, and against simulated truth where it has not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mtkd.contracts import MtkdError
from mtkd.report import simultaneous, tables
from mtkd.report.arrange import POOLED, Block
from mtkd.report.content import Report, Row
from mtkd.report.estimate import Estimate, estimates
from mtkd.report.resampling import bootstrap
from mtkd.report.simultaneous import MinP
from mtkd.report.statistics import Best, Comparison, comparisons, detectable, like_the_best, summary, verdict

SIZES = {"Set5": 5, "Set14": 14, "Kodak24": 24}


def report(scores: dict[str, dict[str, np.ndarray]], baselines=("a",), pooled=tuple(SIZES), **changes) -> Report:
    """A report of one group; `scores`: row -> data set -> (seeds, images) of PSNR."""
    first = next(iter(scores.values()))
    seeds = range(len(next(iter(first.values()))))
    rows = [
        Row(name=name, group="g", seeds=seeds, scores={k: {"psnr": v} for k, v in sets.items()})
        for name, sets in scores.items()
    ]
    images = {name: [f"{name}_{i}" for i in range(values.shape[1])] for name, values in first.items()}
    settings = {"rows": rows, "images": images, "metrics": {"psnr": "higher"}, "pooled": pooled, "baselines": baselines}
    return Report(**{"title": "", "scale": 4, **settings, **changes})


def simulated(
    random: np.random.Generator, rows: int, seeds: int, images: int, *, seed_sd: float, restless: float = 1.0
) -> np.ndarray:
    """Scores without any true gain (rows, seeds, images), as measured on distilled students.

    Args:
        seed_sd: of the gain of one row over another, over seeds: 0.01 to 0.03 dB.
        restless: how many times as much the seeds of row 1 scatter.
    """
    of_runs = random.normal(0, seed_sd / 2**0.5, (rows, seeds, 1))
    of_runs[1] *= restless
    alike = random.normal(28, 3, images) + random.normal(0, 0.02, (1, seeds, 1))
    of_images = random.normal(0, 0.035 / 2**0.5, (rows, 1, images))
    return alike + of_runs + of_images + random.normal(0, 0.02 / 2**0.5, (rows, seeds, images))


def estimate(values: np.ndarray, pairs: list[tuple[int, int]], strata: np.ndarray | None = None) -> list[Estimate]:
    rows, seeds, images = values.shape
    block = Block(
        dataset="d",
        metric="psnr",
        sign=1,
        values=values,
        there=np.ones((rows, seeds), bool),
        strata=np.zeros(images, np.int64) if strata is None else strata,
        places=np.arange(images),
        dropped=0,
    )
    return estimates(block, [True] * rows, pairs, images)


def covers(one: Estimate, level: float = 0.05) -> bool:
    return abs(one.gain) <= one.critical(level) * one.se


# Cases that scipy has.


def test_one_seed_and_one_set_are_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(28, 3, (1, 24)), random.normal(28.1, 3, (1, 24))
    (found,) = comparisons(report({"a": {"Kodak24": a}, "b": {"Kodak24": b}}, pooled=()))
    expected = stats.ttest_rel(b[0], a[0])
    assert found.gain == pytest.approx((b - a).mean()) and found.df == pytest.approx(23)
    assert (found.p, found.p_corrected) == pytest.approx((expected.pvalue, expected.pvalue))
    bounds = expected.confidence_interval()
    assert found.interval == pytest.approx((bounds.low, bounds.high)) and found.interval == pytest.approx(found.alone)
    assert (found.seeds, found.about) == (1, "networks") and math.isnan(found.seed_sd)


def test_gains_that_no_image_moves_are_the_paired_t_test_of_the_seeds() -> None:
    random = np.random.default_rng(1)
    alike = random.normal(28, 3, 24)
    a, b = (alike + random.normal(mean, 0.02, (4, 1)) for mean in (0, 0.03))
    (found,) = comparisons(report({"a": {"Kodak24": a}, "b": {"Kodak24": b}}, pooled=()))
    expected = stats.ttest_rel(b.mean(1), a.mean(1))
    bounds = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.alone == pytest.approx((bounds.low, bounds.high), rel=1e-6)
    assert (found.seeds, found.about) == (4, "methods")
    assert found.seed_sd == pytest.approx(np.std((b - a).mean(1), ddof=1))


def test_against_a_row_that_was_not_trained_only_the_other_rows_seeds_count() -> None:
    random = np.random.default_rng(2)
    alike = random.normal(28, 3, 24)
    students = {name: {"Kodak24": alike + random.normal(0, 0.02, (3, 1))} for name in "abc"}
    given = report(students, pooled=(), baselines=("teacher",))
    teacher = Row(name="teacher", kind="teacher", scores={"Kodak24": {"psnr": alike[None] + 0.01}})
    found = comparisons(replace(given, rows=[teacher, *given.rows]))
    assert [one.row for one in found] == ["a", "b", "c"]
    for one, scores in zip(found, students.values()):
        expected = stats.ttest_1samp(scores["Kodak24"].mean(1) - teacher.scores["Kodak24"]["psnr"].mean(), 0)
        assert one.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_of_several_rows_the_seed_variance_is_that_of_randomised_blocks() -> None:
    values = simulated(np.random.default_rng(3), 5, 3, 50, seed_sd=0.02)
    means = values.mean(-1)
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    shared = 2 * (rest**2).sum() / (4 * 2) / 3
    for one in estimate(values, [(row, 0) for row in range(1, 5)]):
        own = np.var((values[one.row] - values[0]).mean(1), ddof=1) / 3
        assert one.from_seeds @ one.from_seeds == pytest.approx(max(shared, own))
        assert one.df_seeds == 8
        assert one.from_images @ one.from_images == pytest.approx(one.gains.mean(0).var(ddof=1) / 50)


def test_pooled_images_vary_within_their_sets_alone() -> None:
    random = np.random.default_rng(4)
    sets = {name: random.normal(size=(1, size)) for name, size in SIZES.items()}
    levels = {"Set5": 0.0, "Set14": 5.0, "Kodak24": -3.0}  # sets differ by more than images do
    zero = {name: np.zeros((1, size)) for name, size in SIZES.items()}
    scores = {name: values + levels[name] for name, values in sets.items()}
    found = comparisons(report({"a": zero, "b": scores}))[0]
    everything = np.concatenate([values[0] for values in scores.values()])
    expected = sum(values.shape[1] * values.var(ddof=1) for values in sets.values()) / len(everything) ** 2
    assert (found.dataset, found.gain) == (POOLED, pytest.approx(everything.mean()))
    assert found.se == pytest.approx(math.sqrt(expected))
    assert found.wins == (everything > 0).sum() and found.images == 43


def test_corrected_p_values_are_dunnetts_and_tukeys() -> None:
    random = np.random.default_rng(5)
    control, *others = samples = [random.normal(0.6 * number, 1, 6) for number in range(5)]
    pooled = np.mean([sample.var(ddof=1) for sample in samples])

    def of(contrasts: list[list[int]]) -> tuple[np.ndarray, MinP]:
        matrix = np.array(contrasts)
        t = matrix @ [sample.mean() for sample in samples] / math.sqrt(2 * pooled / 6)
        family = MinP(matrix @ matrix.T / 2, np.full(len(matrix), 25.0), np.zeros(len(matrix), np.int64))
        return family.corrected(2 * stats.t.sf(np.abs(t), 25)), family

    many_to_one, family = of([[-1, *(int(at == number) for at in range(4))] for number in range(4)])
    expected = stats.dunnett(*others, control=control, rng=np.random.default_rng(0)).pvalue
    assert many_to_one == pytest.approx(expected, abs=0.005)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    all_pairs, family = of([[int(at == i) - int(at == j) for at in range(5)] for i, j in pairs])
    tukey = stats.tukey_hsd(*samples).pvalue
    assert all_pairs == pytest.approx([tukey[i, j] for i, j in pairs], abs=0.005)
    critical = stats.t.isf(family.threshold(0.05) / 2, 25)
    assert critical == pytest.approx(stats.studentized_range.ppf(0.95, 5, 25) / math.sqrt(2), abs=0.01)


def test_unrelated_comparisons_of_known_variance_are_corrected_as_sidak_does() -> None:
    family = MinP(np.eye(4), np.full(4, math.inf), np.arange(4))
    p = np.array([0.002, 0.01, 0.1, 0.5])
    assert family.corrected(p) == pytest.approx(1 - (1 - p) ** 4, abs=0.003)
    assert family.threshold(0.05) == pytest.approx(1 - 0.95 ** (1 / 4), abs=3e-4)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_corrected_p_below_the_level_is_a_p_below_the_threshold(size: int) -> None:
    correlation = np.full((size, size), 0.5) + 0.5 * np.eye(size)
    family = MinP(correlation, np.full(size, 6.0), np.zeros(size, np.int64))
    edge = family.threshold(0.05)
    below, above = family.corrected(np.array([edge * (1 - 1e-6), edge * (1 + 1e-3)]))
    assert below < 0.05 <= above
    tiny = family.corrected(np.array([1e-12]))[0]
    assert 1e-12 <= tiny <= size * 1e-12 * (1 + 1e-9)


def test_the_detectable_gain_has_the_power_of_a_noncentral_t() -> None:
    random = np.random.default_rng(6)
    a, b = random.normal(28, 0.04, (2, 1, 12))
    (one,) = comparisons(report({"a": {"d": a}, "b": {"d": b}}, pooled=()))
    shift = one.detectable / one.se
    assert stats.nct.sf(stats.t.isf(0.025, 11), 11, shift) == pytest.approx(0.8, abs=0.002)


def test_the_bootstrap_of_images_is_scipys() -> None:
    gains = np.random.default_rng(7).gamma(1, 0.03, (1, 60))
    [(low, high)] = bootstrap([gains], np.zeros(60, np.int64), level=0.05)
    theirs = stats.bootstrap(
        (gains[0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    )
    bounds, width = theirs.confidence_interval, high - low
    assert (low, high) == pytest.approx((bounds.low, bounds.high), abs=0.04 * width)


def test_the_bootstrap_of_seeds_and_images_draws_both_by_themselves_and_sets_apart() -> None:
    random = np.random.default_rng(8)
    gains = random.normal(0, 0.02, (3, 1)) + np.repeat([0.0, 1.0], [10, 30]) + random.normal(0, 0.05, (3, 40))
    [found] = bootstrap([gains], np.repeat([0, 1], [10, 30]), level=0.05)
    means = []
    for _ in range(4000):
        chosen = np.concatenate([random.integers(0, 10, 10), random.integers(10, 40, 30)])
        means.append(gains[random.integers(0, 3, 3)][:, chosen].mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert found == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))


# What is promised of intervals, where the truth is known.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "images", "seed_sd"), [(2, 20, 0.03), (2, 60, 0.02), (7, 20, 0.01), (7, 60, 0.02), (7, 200, 0.03)]
)
def test_intervals_of_three_seeds_cover_the_truth_and_a_percentile_bootstrap_does_not(
    rows: int, images: int, seed_sd: float
) -> None:
    """`docs/reports.md` has more: here 500 trials, whose own standard deviation is one percent."""
    random, hits = np.random.default_rng(9), []
    for _ in range(500):
        (one,) = estimate(simulated(random, rows, 3, images, seed_sd=seed_sd), [(1, 0)])
        [(low, high)] = bootstrap([one.gains], np.zeros(images, np.int64), level=0.05, resamples=300)
        images_alone = stats.t.isf(0.025, images - 1) * np.linalg.norm(one.from_images)
        hits.append((covers(one), low <= 0 <= high, abs(one.gain) <= images_alone))
    ours, percentile, over_images = np.mean(hits, axis=0)
    assert ours >= 0.94
    assert percentile < 0.93 and over_images < percentile


@pytest.mark.slow
def test_a_restless_row_is_not_hidden_by_calm_ones() -> None:
    """Its seeds scatter twice as much: the shared variance alone would cover 87 % of the time."""
    random = np.random.default_rng(10)
    hits = [covers(estimate(simulated(random, 7, 3, 60, seed_sd=0.02, restless=2), [(1, 0)])[0]) for _ in range(500)]
    assert np.mean(hits) >= 0.90


@pytest.mark.slow
def test_corrected_intervals_hold_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simultaneous, "DRAWS", 2**11)
    monkeypatch.setattr("mtkd.report.statistics.bootstrap", lambda gains, *_, **__: [(math.nan, math.nan)] * len(gains))
    baselines = ("0", "3", "4")
    random, together, alone = np.random.default_rng(11), [], []
    for _ in range(120):
        values = simulated(random, 6, 3, 40, seed_sd=0.02)
        found = comparisons(report({str(n): {"d": one} for n, one in enumerate(values)}, baselines, pooled=()))
        together.append(all(one.verdict == "cannot be told apart" for one in found))
        alone.append(all(one.alone[0] <= 0 <= one.alone[1] for one in found))
    assert np.mean(together) >= 0.92 > np.mean(alone)


# What a comparison says.


@pytest.fixture(scope="module")
def many() -> Report:
    """Eight rows, two baselines, two metrics of three sets, gains from none to plain."""
    random = np.random.default_rng(12)
    rows = []
    for number, name in enumerate("abcdefgh"):
        sets = {}
        for dataset, size in SIZES.items():
            psnr = np.random.default_rng(size).normal(28, 3, size) + random.normal(0.012 * number, 0.01, (3, 1))
            psnr = psnr + random.normal(0, 0.03, size) + random.normal(0, 0.02, (3, size))
            sets[dataset] = {"psnr": psnr, "lpips": 1 - psnr / 50 + random.normal(0, 1e-4, (3, size))}
        rows.append(Row(name=name, group="g", seeds=(10, 20, 30), scores=sets))
    images = {name: [f"{name}_{i}" for i in range(size)] for name, size in SIZES.items()}
    metrics = {"psnr": "higher", "lpips": "lower"}
    pooled, baselines = ("Set14", "Kodak24"), ("a", "c")
    return Report(title="", scale=4, rows=rows, images=images, metrics=metrics, pooled=pooled, baselines=baselines)


@pytest.fixture(scope="module")
def found_in_many(many: Report) -> list[Comparison]:
    return comparisons(many)


def test_interval_p_value_and_verdict_are_one_statement(found_in_many: list[Comparison]) -> None:
    found = found_in_many
    verdicts = {one.verdict for one in found}
    assert {"better", "cannot be told apart"} <= verdicts
    for one in found:
        assert (one.p_corrected < 0.05) == (one.verdict != "cannot be told apart")
        assert (one.p < 0.05) == (not one.alone[0] <= 0 <= one.alone[1])
        assert one.p <= one.p_corrected <= min(1, one.family * one.p) + 1e-12
        assert one.interval[0] <= one.alone[0] <= one.gain <= one.alone[1] <= one.interval[1]


def test_families_are_the_pooled_comparisons_and_those_of_single_sets(
    many: Report, found_in_many: list[Comparison]
) -> None:
    found = found_in_many
    pooled = [one for one in found if one.dataset == POOLED]
    # Seven rows against a, and six against c: a against c would be c against a once more.
    assert len(pooled) == 2 * 13 and {one.family for one in pooled} == {26}
    assert len(found) - 26 == 3 * 26 == found[-1].family
    assert not [one for one in found if (one.row, one.baseline) == ("a", "c")]
    assert {one.images for one in pooled} == {38}
    told = comparisons(replace(many, validation=("Set5",)))
    assert {one.dataset for one in told} == {POOLED, "Set14", "Kodak24"}


def test_of_a_metric_whose_lower_values_are_better_gains_are_turned(found_in_many: list[Comparison]) -> None:
    one = next(one for one in found_in_many if (one.row, one.metric) == ("h", "lpips"))
    assert one.mean < one.baseline_mean and one.gain == pytest.approx(one.baseline_mean - one.mean)
    assert one.verdict == "better" and one.wins > one.images / 2


def test_the_same_report_gives_the_same_numbers(many: Report, found_in_many: list[Comparison]) -> None:
    assert comparisons(many) == found_in_many


def test_an_image_without_a_value_is_left_out_of_every_row(many: Report) -> None:
    rows = list(many.rows)
    broken = {name: dict(metrics) for name, metrics in rows[3].scores.items()}
    broken["Set14"]["psnr"] = broken["Set14"]["psnr"].copy()
    broken["Set14"]["psnr"][1, 4] = math.nan
    broken["Kodak24"]["psnr"] = broken["Kodak24"]["psnr"].copy()
    broken["Kodak24"]["psnr"][0, 0] = math.inf  # the PSNR of equal images
    rows[3] = replace(rows[3], scores=broken)
    found = [one for one in comparisons(replace(many, rows=rows)) if (one.dataset, one.metric) == (POOLED, "psnr")]
    assert {(one.images, one.dropped) for one in found} == {(36, 2)}
    b, a = (
        [np.delete(row.scores[name]["psnr"], gone, axis=1) for name, gone in (("Set14", 4), ("Kodak24", 0))]
        for row in (rows[1], rows[0])
    )
    assert found[0].gain == pytest.approx((np.concatenate(b, 1) - np.concatenate(a, 1)).mean())


def test_a_run_that_is_not_there_yet_leaves_the_other_seeds(many: Report) -> None:
    rows = list(many.rows)
    gone = {name: {metric: v.copy() for metric, v in metrics.items()} for name, metrics in rows[2].scores.items()}
    for metrics in gone.values():
        for values in metrics.values():
            values[1] = math.nan
    rows[2] = replace(rows[2], scores=gone)
    short = {name: {metric: v[:2] for metric, v in metrics.items()} for name, metrics in rows[4].scores.items()}
    rows[4] = replace(rows[4], seeds=(10, 20), scores=short)
    rows[5] = replace(rows[5], scores={"Set14": rows[5].scores["Set14"]})
    every = [one for one in comparisons(replace(many, rows=rows)) if one.metric == "psnr"]
    found = {(one.row, one.baseline, one.dataset): one for one in every}
    assert (found["c", "a", POOLED].seeds, found["c", "a", POOLED].dropped) == (2, 0)
    assert found["e", "a", POOLED].seeds == 2 and found["e", "c", POOLED].seeds == 1
    assert found["e", "c", POOLED].about == "networks"
    assert found["b", "a", POOLED].seeds == 3
    assert ("f", "a", POOLED) not in found and ("f", "a", "Set14") in found


def test_rows_of_other_seeds_are_not_paired() -> None:
    values = simulated(np.random.default_rng(13), 2, 2, 20, seed_sd=0.02)
    given = report({"a": {"d": values[0]}, "b": {"d": values[1]}}, pooled=())
    rows = [given.rows[0], replace(given.rows[1], seeds=(7, 8))]
    assert comparisons(replace(given, rows=rows)) == []


def test_equal_answers_cannot_be_told_apart_and_a_constant_gain_is_certain() -> None:
    scores = np.random.default_rng(14).normal(28, 3, (2, 10)).round(2)
    same = comparisons(report({"a": {"d": scores}, "b": {"d": scores}}, pooled=()))[0]
    assert (same.gain, same.interval, same.p, same.verdict) == (0, (0, 0), 1, "cannot be told apart")
    half = comparisons(report({"a": {"d": np.zeros((2, 10))}, "b": {"d": np.full((2, 10), 0.5)}}, pooled=()))[0]
    assert (half.interval, half.p_corrected, half.verdict) == ((0.5, 0.5), 0, "better")


def test_one_image_supports_nothing() -> None:
    (one,) = comparisons(report({"a": {"d": np.ones((3, 1))}, "b": {"d": np.full((3, 1), 9.0)}}, pooled=()))
    assert all(map(math.isnan, (*one.interval, one.p, one.se, one.detectable))) and one.gain == 8
    assert one.verdict == "cannot be told apart" and math.isnan(detectable([one]))


def test_sets_of_one_image_are_taken_with_others() -> None:
    values = np.random.default_rng(15).normal(size=(1, 1, 7))
    strata = np.array([0, 1, 1, 1, 2, 3, 3])
    one = estimate(np.concatenate([values * 0, values]), [(1, 0)], strata)[0]
    together = estimate(np.concatenate([values * 0, values]), [(1, 0)], np.array([0, 1, 1, 1, 0, 3, 3]))[0]
    assert one.se == together.se > 0


def test_the_best_row_is_found_by_comparing_all_pairs() -> None:
    random = np.random.default_rng(16)
    values = simulated(random, 5, 3, 100, seed_sd=0.01) + np.array([0, 0, 0.3, 0.3, -0.2])[:, None, None]
    given = report({name: {"d": one} for name, one in zip("abcde", values)}, pooled=("d",))
    best = like_the_best(given, "g", "psnr")
    assert best is not None and {best.name, *best.alike} == {"c", "d"}
    turned = like_the_best(replace(given, metrics={"psnr": "lower"}), "g", "psnr")
    assert turned == Best("e", [], [])
    assert like_the_best(replace(given, rows=given.rows[:1]), "g", "psnr") is None


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize("seed", [0, 9])
def test_the_best_row_is_sought_among_those_of_the_same_seeds(order: str, seed: int) -> None:
    """c was trained with one easy seed, or with one that no other row has: its mean is of other runs."""
    values = simulated(np.random.default_rng(17), 3, 3, 100, seed_sd=0.001) + np.array([0, 0.1, 0.05])[:, None, None]
    values[:, 0] += 1
    every = report({name: {"d": one} for name, one in zip("abc", values)}, pooled=("d",))
    rows = {row.name: row for row in every.rows}
    rows["c"] = replace(rows["c"], seeds=(seed,), scores={"d": {"psnr": values[2, :1]}})
    given = replace(every, rows=[rows[name] for name in order])
    assert like_the_best(given, "g", "psnr") == Best("b", [], ["c"])
    text = tables.markdown(given, comparisons(given))
    assert "b has the best PSNR among the rows with all seeds. It is better than every other of them" in text
    assert "for other seeds move a mean too: c." in text
    cells = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "(1 of 3 seeds)" in cells["c"] and "**" not in cells["c"] and "**" in cells["b"]


def test_a_group_is_compared_with_its_own_baseline(many: Report) -> None:
    other = [replace(row, group="other") for row in many.rows[:3]]
    found = comparisons(replace(many, rows=[*many.rows, *other]))
    counts = {group: sum(one.group == group and one.dataset == POOLED for one in found) for group in ("g", "other")}
    assert counts == {"g": 26, "other": 6}


def test_a_cell_is_the_mean_over_seeds_and_images_and_the_deviation_over_seeds(many: Report) -> None:
    row = many.rows[2]
    cell = summary(many, row, POOLED, "psnr")
    scores = np.concatenate([row.scores[name]["psnr"] for name in many.pooled], axis=1)
    assert cell is not None and (cell.seeds, cell.images) == (3, 38)
    assert (cell.mean, cell.sd) == pytest.approx((scores.mean(), stats.tstd(scores.mean(1))))
    assert summary(many, row, "Set5", "ssim") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": (1, 2)}, "expected \\(2, 14\\)"),
        ({"seeds": (1, 1, 2)}, "repeat"),
        ({"kind": "teacher"}, "measured once"),
    ],
)
def test_scores_that_do_not_fit_are_refused(many: Report, change: dict, said: str) -> None:
    with pytest.raises(MtkdError, match=said):
        comparisons(replace(many, rows=[replace(many.rows[0], **change), *many.rows[1:]]))


def test_the_verdict_needs_all_of_the_interval() -> None:
    assert verdict((0.0, 0.1)) == verdict((-0.1, 0.0)) == "cannot be told apart"
    assert (verdict((1e-9, 0.1)), verdict((-0.1, -1e-9))) == ("better", "worse")


def test_a_row_that_is_not_compared_takes_no_image_from_those_that_are() -> None:
    """Bicubic is exact on a flat image: its infinite PSNR is no matter of two networks."""
    random = np.random.default_rng(11)
    students = {name: {"Kodak24": random.normal(28, 3, (3, 24))} for name in "ab"}
    given = report(students, pooled=("Kodak24",))
    alone = comparisons(given)
    flat = random.normal(25, 3, (1, 24))
    flat[0, 7] = math.inf
    bicubic = Row(name="bicubic", kind="baseline", scores={"Kodak24": {"psnr": flat}})
    beside = comparisons(replace(given, rows=[bicubic, *given.rows]))
    assert [(one.row, one.gain, one.interval, one.dropped) for one in beside] == [
        (one.row, one.gain, one.interval, 0) for one in alone
    ]


def test_a_seed_that_lacks_a_set_is_no_part_of_the_pooled_mean() -> None:
    scores = {"Set5": np.full((3, 5), 30.0), "Set14": np.full((3, 14), 20.0)}
    scores["Set5"][2] = math.nan
    given = report({"a": scores}, pooled=("Set5", "Set14"))
    found = summary(given, given.rows[0], POOLED, "psnr")
    assert found is not None
    assert (found.seeds, found.images, found.mean) == (2, 19, pytest.approx((5 * 30 + 14 * 20) / 19))
