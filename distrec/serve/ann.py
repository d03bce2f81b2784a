"""Indices for approximate nearest-neighbour search of items, by faiss or hnswlib, with their recall.

HNSW graphs (Malkov and Yashunin, TPAMI 2020) of inner products; under cosine similarity, of vectors of unit length.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distrec.core.errors import UserError
from distrec.models.scoring import l2_normalize_reference

LIBRARIES = ("faiss", "hnswlib")
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 200, 128  # M, efConstruction, efSearch
_QUERIES, _K = 1000, 20


def build(library: str, users_UD: Tensor, items_VD: Tensor, similarity: str, folder: Path) -> dict[str, Any]:
    """Write an index of the items to `items.faiss` or `items.hnswlib`; labels are codes of the items.

    Returns:
        Facts: parameters and the recall@20 against exact search, over a sample of the users.

    Raises:
        UserError: an unknown library, or one that is not installed.
    """
    if library not in LIBRARIES:
        raise UserError(f"unknown index {library!r}; known: {', '.join(LIBRARIES)}")
    if similarity == "cosine":
        users_UD, items_VD = l2_normalize_reference(users_UD), l2_normalize_reference(items_VD)
    items = np.ascontiguousarray(items_VD.float().cpu().numpy())
    sample = np.linspace(0, len(users_UD) - 1, min(_QUERIES, len(users_UD))).astype(int)
    queries, k = np.ascontiguousarray(users_UD.float().cpu().numpy()[sample]), min(_K, len(items))
    file = folder / f"items.{library}"
    try:
        found = (_faiss if library == "faiss" else _hnswlib)(items, queries, k, file)
    except ImportError:
        raise UserError(f"{library} is not installed: pip install 'distrec[{library}]'") from None
    exact = np.argpartition(-(queries @ items.T), k - 1, axis=1)[:, :k]
    recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, exact, strict=True)])
    return {
        "file": file.name,
        "similarity": similarity,
        "links": _LINKS,
        "build_width": _BUILD_WIDTH,
        "search_width": _SEARCH_WIDTH,
        f"recall@{k}": round(float(recall), 4),
        "queries": len(queries),
    }


def describe(facts: dict[str, Any]) -> str:
    """Return a line on an index."""
    name, recall = next((name, value) for name, value in facts.items() if name.startswith("recall@"))
    return (
        f"{facts['file']}: {name} {recall:.4f} against exact search, over {facts['queries']:,} users "
        f"(HNSW, M {facts['links']}, efConstruction {facts['build_width']}, efSearch {facts['search_width']})"
    )


def _faiss(items: np.ndarray, queries: np.ndarray, k: int, file: Path) -> np.ndarray:
    import faiss

    index = faiss.IndexHNSWFlat(items.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD_WIDTH, _SEARCH_WIDTH
    index.add(items)
    faiss.write_index(index, str(file))
    return np.asarray(index.search(queries, k)[1])


def _hnswlib(items: np.ndarray, queries: np.ndarray, k: int, file: Path) -> np.ndarray:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(max_elements=len(items), ef_construction=_BUILD_WIDTH, M=_LINKS)
    index.add_items(items, np.arange(len(items)))
    index.set_ef(max(_SEARCH_WIDTH, k))
    index.save_index(str(file))
    return np.asarray(index.knn_query(queries, k)[0])
