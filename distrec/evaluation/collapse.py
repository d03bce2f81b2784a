"""A rule that recognises a collapse of the representations from their diagnostics, and names likely causes.

Thresholds, from runs of every loss on planted data (effective rank over its bound at least 0.6, mean cosine at most
0.7), and of a GC-MC encoder with BPR (at least 0.28, at most 0.93) and with the collapsing sum inside the sigmoid (at
most 0.2, at least 0.95): docs/evaluation.md.
"""

from collections.abc import Mapping, Sequence

MOST_COSINE = 0.95
"""Mean cosine of a side above which its representations point in one direction,"""
LEAST_RANK = 0.25
"""if their effective rank is also below this share of its bound, the dimension or the number of rows."""
MOST_DEAD = 0.01
"""Share of the rows with training interactions that may be dead."""
GROWTH = 10.0
"""Factor by which the median norm may change between evaluations without being named as a cause."""
_NO_GRADIENT = 1e-8  # norm of the gradient of the last step below which the loss is saturated
_LONG = 100.0  # median norm that is named as a cause at the first evaluation

Figures = Mapping[str, float]


def collapse_warning(figures: Figures, before: Sequence[Figures]) -> str | None:
    """Return a line that describes a collapse and its likely causes; None if there is none.

    Args:
        figures: diagnostics of an evaluation.
        before: those of the evaluations before it.
    """
    for side in ("users", "items"):
        dead, cosine = figures.get(f"dead_rows_{side}", 0.0), figures.get(f"mean_cosine_{side}", 0.0)
        if dead > MOST_DEAD:
            return (
                f"{dead:.0%} of the {side} with training interactions have representations of length 0, or not finite: "
                "lower optim.decay.strength and optim.lr"
            )
        share = figures.get(f"effective_rank_share_{side}", 1.0)
        if cosine > MOST_COSINE and share < LEAST_RANK:
            return (
                f"the representations of the {side} collapse to one direction: mean cosine {cosine:.2f}, effective "
                f"rank {figures[f'effective_rank_{side}']:.1f}. Likely: {'; '.join(_causes(side, figures, before))}"
            )
    return None


def _causes(side: str, figures: Figures, before: Sequence[Figures]) -> list[str]:
    causes, now = [], figures[f"norm_p50_{side}"]
    first = next((f[f"norm_p50_{side}"] for f in before if f"norm_p50_{side}" in f), None)
    if now > (_LONG if first is None else GROWTH * first):
        causes.append(f"steps too large, as the median length is {now:.3g}: lower optim.lr, set optim.clip_norm")
    if first is not None and now < first / GROWTH:
        causes.append(f"decay too strong, as the median length fell from {first:.3g} to {now:.3g}")
    if figures.get("gradient_norm", 1.0) < _NO_GRADIENT:
        causes.append(
            "a saturated loss, as the gradient of the last step is 0: take the mean of a nonlinear term of each pair, "
            "not one of scores summed over the batch"
        )
    return causes or [
        "nothing pushes representations apart: raise sampling.negatives or the weight of uniformity or of the negatives"
    ]
