"""Ranking metrics beside those of trec_eval, which ir-measures computes: the oracle of tests and of a benchmark."""

from collections.abc import Iterator, Sequence

import numpy as np

from distrec.evaluation.metrics import METRICS, user_metrics


def beside_trec_eval(
    ranked_UK: np.ndarray, indptr: np.ndarray, indices: np.ndarray, ks: Sequence[int]
) -> Iterator[tuple[str, float, float]]:
    """Yield (`name@K`, our value, that of trec_eval) of each metric and each user with relevant items.

    Args:
        ranked_UK: ranked items of each user, best first.
        indptr: relevant items of the users, as CSR.
        indices: relevant items of the users, as CSR.
        ks: cut-offs.
    """
    import ir_measures as ir  # of the extra `dev`

    names = {"ndcg": ir.nDCG, "recall": ir.R, "precision": ir.P, "hit_rate": ir.Success, "mrr": ir.RR, "map": ir.AP}
    assert names.keys() == METRICS.keys()
    found = user_metrics(ranked_UK, indptr, indices, ks, tuple(METRICS))
    index = {str(u): n for n, u in enumerate(found.row_U)}
    relevant = {str(u): indices[indptr[u] : indptr[u + 1]].tolist() for u in found.row_U}
    qrels = {user: {str(item): 1 for item in items} for user, items in relevant.items()}
    lists = {str(u): row for u, row in enumerate(ranked_UK.tolist())}
    run = {user: {str(item): -float(rank) for rank, item in enumerate(row)} for user, row in lists.items()}
    of_measure = {str(measure @ k): f"{name}@{k}" for name, measure in names.items() for k in ks}
    for metric in ir.iter_calc([measure @ k for measure in names.values() for k in ks], qrels, run):
        name = of_measure[str(metric.measure)]
        yield name, float(found.values[name][index[metric.query_id]]), metric.value
