"""Rules that stop trials, against their definitions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.tuning.stopping import asha_stops, median_stops


def curve(*values: float) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in enumerate(values, 1)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=9), min_size=1, max_size=12), st.integers(2, 4))
def test_asha_keeps_the_best_of_each_rung(curves, reduction):
    """At a rung a trial goes on if less than 1/reduction of all there are better, counted; elsewhere always."""
    *others, own = [curve(*values) for values in curves]
    epoch, value = own[-1]
    rungs = [reduction**k for k in range(4)]
    stops = asha_stops(own, others, 1, reduction)
    if epoch not in rungs:
        assert not stops
        return
    there = [other[epoch - 1][1] for other in others if len(other) >= epoch]
    better = sum(v > value for v in there)
    if better == 0:
        assert not stops
    elif better >= (len(there) + 1) / reduction:
        assert stops
    if len(there) + 1 > reduction and better + 1 <= (len(there) + 1) // reduction:
        assert not stops


def test_asha_looks_at_a_rung_at_the_first_evaluation_from_it_on():
    others = [[(2, 0.5), (4, 0.9)], [(2, 0.4), (4, 0.8)]]
    assert asha_stops([(2, 0.1)], others, 1, 3)  # the first rung, of one epoch
    assert not asha_stops([(2, 0.6), (4, 0.7)], [[(2, 0.5)]], 1, 3)  # no other trial reached the second of three rungs
    assert asha_stops([(2, 0.6), (4, 0.7)], others, 1, 3)
    assert not asha_stops([(2, 0.1)], others, 4, 3)


def test_median_compares_the_best_value_with_means_so_far():
    others = [curve(0.1, 0.3, 0.9), curve(0.2, 0.4), curve(0.3, 0.5)]  # means after two epochs: 0.2, 0.3, 0.4
    assert median_stops(curve(0.29, 0.2), others, 1) and not median_stops(curve(0.31, 0.2), others, 1)
    assert not median_stops(curve(0.29, 0.2), others, 2)  # within its grace
    assert not median_stops(curve(0.29, 0.2), others[:2], 1)  # too few to have a median
