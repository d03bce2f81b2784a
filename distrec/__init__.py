"""distrec: collaborative-filtering embedding models on a Ray cluster.

Shape suffixes used all over the project: B pairs in a batch, N negatives of a pair, D dimension, V rows of a table,
U unique rows in a batch, K cut-off of a ranking, W workers, P buckets.
"""

__version__ = "0.1.0"
