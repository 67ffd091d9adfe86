"""What a comparison may say: the interval is Student's, words are wrong as rarely as they promise, and an
accepted null needs an equivalence interval."""

import math
import numpy as np
import pytest
from scipy.stats import ttest_rel, ttest_1samp
from vit_ssl_lab import comparison

SEEDS = (3, 5)


@pytest.mark.parametrize('n', [2, 3, 5, 11])
@pytest.mark.parametrize('threshold', [0.0, 1.5, -2.0])
def test_interval_and_p_are_those_of_scipys_paired_t_test(n, threshold):
    draws = np.random.default_rng(n)
    a, b = draws.normal(62, 2, n), draws.normal(60, 2, n)
    outcome = comparison.compare(a, b, threshold)
    low, high = ttest_rel(a, b).confidence_interval(0.95)
    assert (outcome['low'], outcome['high']) == pytest.approx((low, high))
    assert outcome['p'] == pytest.approx(ttest_1samp(a - b, threshold).pvalue, rel=1e-6)
    decided = outcome['p'] < 0.05
    assert decided == (outcome['word'] != 'undecided'), "interval and p say the same"


def words(draws, n, trials, gain=0.0, test_error=0.0):
    "The word of `compare` for many studies of two arms, `n` seeds each; how often each was said."
    said = {'shown': 0, 'contrary': 0, 'undecided': 0}
    for _ in range(trials):
        of_pictures = draws.normal(0, test_error) if test_error else 0.0  # the same for all seeds
        base = draws.normal(60, 1, n)
        other = base + gain + of_pictures + draws.normal(0, 1, n)
        said[comparison.compare(other, base, test_error=test_error)['word']] += 1
    return {word: count / trials for word, count in said.items()}


@pytest.mark.parametrize('n', SEEDS)
@pytest.mark.parametrize('test_error', [0.0, 1.0])
def test_of_true_nulls_at_most_one_in_twenty_gets_a_word(n, test_error):
    share = words(np.random.default_rng(7 * n), n, 3000, test_error=test_error)
    assert share['shown'] < 0.025 + 3 * (0.025 * 0.975 / 3000) ** 0.5
    assert share['shown'] + share['contrary'] < 0.05 + 3 * (0.05 * 0.95 / 3000) ** 0.5


@pytest.mark.parametrize('n', SEEDS)
def test_true_differences_are_found(n):
    share = words(np.random.default_rng(n), n, 300, gain=6.0)
    assert share['shown'] > 0.9
    assert share['contrary'] == 0


@pytest.mark.parametrize('n', SEEDS)
def test_a_family_of_true_nulls_rarely_gets_any_word(n):
    draws = np.random.default_rng(n)
    families, size, any_word, any_before = 400, 8, 0, 0
    for _ in range(families):
        outcomes = {}
        for i in range(size):
            base = draws.normal(60, 1, n)
            outcomes[f'claim {i}'] = comparison.compare(base + draws.normal(0, 1, n), base)
        any_before += any(o['word'] != 'undecided' for o in outcomes.values())
        any_word += any(o['word'] != 'undecided' for o in comparison.holm(outcomes).values())
    assert any_word / families < 0.05 + 3 * (0.05 * 0.95 / families) ** 0.5
    assert any_before / families > 0.2, "without the correction one family in three gets one"


def test_holm_keeps_the_order_of_claims_and_figures():
    a, b = [5.0, 5.1, 4.9], [1.0, 1.2, 0.9]
    outcomes = {'large': comparison.compare(a, b), 'none': comparison.compare(a, a[::-1])}
    corrected = comparison.holm(outcomes)
    assert list(corrected) == ['large', 'none']
    assert corrected['large']['low'] == outcomes['large']['low']
    assert corrected['large']['p_holm'] == pytest.approx(2 * outcomes['large']['p'])
    assert corrected['none']['p_holm'] == 1.0


@pytest.mark.parametrize('n', SEEDS)
def test_a_null_is_shown_only_within_its_margin(n):
    draws = np.random.default_rng(n)
    trials, wrong = 2000, 0
    for _ in range(trials):  # the true difference lies on the margin's edge
        base = draws.normal(60, 1, n)
        outcome = comparison.compare_equal(base + 1.0 + draws.normal(0, 0.3, n), base, margin=1.0)
        wrong += outcome['word'] == 'shown'
    assert wrong / trials < 0.025 + 3 * (0.025 * 0.975 / trials) ** 0.5


def test_the_test_sets_error_counts_the_pictures_on_which_two_networks_disagree():
    draws = np.random.default_rng(0)
    right_a = draws.random(500) < 0.6
    right_b = np.where(draws.random(500) < 0.1, ~right_a, right_a)
    by_bootstrap = []
    for _ in range(2000):
        chosen = draws.integers(0, 500, 500)
        by_bootstrap.append(100 * (right_a[chosen].mean() - right_b[chosen].mean()))
    error = comparison.paired_test_error(right_a, right_b)
    assert error == pytest.approx(np.std(by_bootstrap), rel=0.06)
    unpaired = comparison.unpaired_test_error(100 * right_a.mean(), 100 * right_b.mean(), 500)
    assert error < unpaired, "pictures that both get right say nothing about the difference"


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: comparison.compare([1.0, 2.0], [1.0]), 'the same seeds, two or more: got 2 and 1'),
        (lambda: comparison.compare([1.0], [1.0]), 'two or more: got 1 and 1'),
        (lambda: comparison.compare([1.0, math.inf], [1.0, 2.0]), 'finite values'),
        (lambda: comparison.compare([1.0, 2.0], [1.0, 2.5], n_test=0), 'n_test must be 1 or more'),
        (lambda: comparison.compare([1.0, 120.0], [1.0, 200.0], n_test=9), 'is a share, 0 to 1'),
        (lambda: comparison.compare_equal([1.0, 2.0], [1.0, 2.5], margin=0.0), 'margin'),
        (lambda: comparison.paired_test_error([], []), 'got 0 and 0 answers'),
    ],
)
def test_bad_input_gets_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_claim_is_judged_over_the_seeds_that_both_arms_have():
    both = comparison.judge_claim('a beats b', [3.0, 4.1, 9.0], [1.0, 2.0], unit='%', threshold=1.0)
    assert both == comparison.verdict('a beats b', comparison.compare([3.0, 4.1], [1.0, 2.0], 1.0), '%')
    assert comparison.judge_claim('a beats b', [3.0], []) == 'a beats b: not judged, 0 seed(s) stored.'


def test_arms_that_agree_up_to_rounding_have_a_p_of_one():
    outcome = comparison.compare([3.0, 4.0, 5.0], [3.1, 4.0, 4.9])
    assert 0 < abs(outcome['difference']) < 1e-12
    assert (outcome['p'], outcome['word']) == (1.0, 'undecided')
