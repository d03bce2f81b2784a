"""The inputs of a loss: the fields that it declares, computed from the representations of a step."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.dispatch import has_gpu_kernel
from distrec.losses.base import Catalogue, GlobalBatch, LossInputs
from distrec.models.scoring import pair_scores, shared_scores
from distrec.sampling.batch import Batch
from distrec.sampling.config import SamplingConfig
from distrec.sharding.collectives import Exchange
from distrec.sharding.device_copy import to_device
from distrec.sharding.differentiable import StepExchange

_SCORES = {"positive_B", "negative_BN", "unmasked_B", "extra_BM", "log_q_BN", "negative_norm2_BN", "negative_logit_BN"}
_OF_USERS = {"user_norm2_B", "users_BD", "user_rows_BD", "user_B", "degree_B", "user_logit_B", "catalogue"}


def fetches_items(reads: Collection[str], item_tables: Collection[str]) -> bool:
    """Return whether the inputs hold anything of items that other workers own."""
    return bool(item_tables) or not _OF_USERS.issuperset(reads)


REPRESENTATION = ""
"""Name of the representations beside the names of tables,"""
LOGIT = "logit"
"""and of the logits of a model that has them."""


class _PairScores(NamedTuple):
    """Implements `LazyScores` for pairs with negatives of their own, on a GPU."""

    users_UD: Tensor
    items_UD: Tensor
    user_index_B: Tensor
    positive_index_B: Tensor
    negative_index_BN: Tensor

    def scores(self) -> tuple[Tensor, Tensor]:
        index = torch.cat([self.positive_index_B[:, None], self.negative_index_BN], 1)
        scores = pair_scores(self.users_UD, self.items_UD, self.user_index_B, index)
        return scores[:, 0], scores[:, 1:]

    def log_sum_exp(self, temperature: float) -> tuple[Tensor, Tensor]:
        from distrec.kernels.triton.pair_softmax import PairSoftmax  # here: Triton may be missing

        found: tuple[Tensor, Tensor] = PairSoftmax.apply(*self, temperature)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True)
class LossInputBuilder:
    """Builds the inputs of a loss from what a step has computed before it. Fields are computed in a fixed order, as
    some are collective."""

    batch: Batch
    arrays: dict[str, Tensor]
    """Arrays of the batch, on the device."""
    sampling: SamplingConfig
    users: dict[str, Tensor]
    """Representations of this worker's users, (U, D), and their rows of some tables, by name."""
    items: dict[str, Tensor]
    """The same of the items of its pairs; of all its own items, if nothing is fetched."""
    exchange: StepExchange
    group: Exchange
    normalized: bool = False
    """Whether representations are of unit length, but for those of `users_of_pairs`. Their norms are constants: the
    gradient of one would be along the row."""
    sums_exponentials: bool = False
    """`Loss.sums_exponentials`."""
    users_of_pairs: bool = False
    """Whether the representations in `users` are of the user of each pair, (B, D), as dropout makes them."""

    def build(self, reads: Collection[str], own_tables: Collection[str], **others: Any) -> LossInputs:
        """Return the fields of `LossInputs` that `reads` names, those that every loss has, and others.

        Args:
            reads: fields that the loss reads.
            own_tables: names of its own tables among `users` and `items`.
            others: fields that are computed already.
        """
        user_B = self.arrays["user_index_B"].long()
        fields: dict[str, Any] = {"user_B": user_B, "tables": {}}
        others["users"] = max(len(self.users[REPRESENTATION]), len(user_B))
        if not _SCORES.isdisjoint(reads):
            fields |= self._scores(reads)
        positive_B = self.arrays["positive_index_B"].long()
        for name, values, index_B, row_B in (
            ("user", self.users, user_B, self._row_of_user_B.long()),
            ("positive", self.items, positive_B, positive_B),
        ):
            rows_UD = values[REPRESENTATION]
            fields["tables"] |= {k: rows.index_select(0, index_B) for k, rows in values.items() if k in own_tables}
            if f"{name}_norm2_B" in reads:
                if self.normalized and not (name == "user" and self.users_of_pairs):
                    fields[f"{name}_norm2_B"] = rows_UD.new_ones(len(row_B))
                else:
                    fields[f"{name}_norm2_B"] = rows_UD.square().sum(1).index_select(0, row_B)
            if f"{name}_rows_BD" in reads:
                columns = [rows for k, rows in values.items() if k not in (*own_tables, REPRESENTATION, LOGIT)]
                fields[f"{name}_rows_BD"] = torch.cat(columns, 1).index_select(0, index_B)
            if f"{name}_logit_B" in reads:
                fields[f"{name}_logit_B"] = values[LOGIT][:, 0].index_select(0, index_B)
            if f"{name}s_BD" in reads or "batch" in reads or (name == "user" and "catalogue" in reads):
                fields[f"{name}s_BD"] = rows_UD.index_select(0, row_B)
        if "batch" in reads:
            fields["batch"] = self._global_batch(fields["users_BD"], fields["positives_BD"])
        if "catalogue" in reads:
            rows_VD, positive_B = self.items[REPRESENTATION], self._owned_positive_B
            fields["catalogue"] = Catalogue(fields["users_BD"], rows_VD, positive_B, self._owners_of_items)
        fields = {name: value for name, value in fields.items() if name in reads or name in ("tables", "lazy")}
        others |= {
            "pairs": self.batch.pairs,
            "draws": self._draws,
            "workers": self.group.workers,
            "rank": self.group.rank,
        }
        return LossInputs(exchange=self.exchange, **fields, **others)

    @property
    def _row_of_user_B(self) -> Tensor:
        """Row of each pair's user among the representations."""
        index_B = self.arrays["user_index_B"]
        return torch.arange(len(index_B), device=index_B.device) if self.users_of_pairs else index_B

    @property
    def _draws(self) -> int:
        if self.sampling.distribution == "in_batch":
            return self.batch.pairs - 1
        return self.sampling.negatives

    def _scores(self, reads: Collection[str]) -> dict[str, Any]:
        """Return the scores, known positives among the negatives at -inf; log q; norms of the negatives."""
        arrays, pairs, shared = self.arrays, len(self.arrays["user_index_B"]), self.sampling.shared
        users_UD, items_UD, user_index_B = (
            self.users[REPRESENTATION],
            self.items[REPRESENTATION],
            self._row_of_user_B,
        )
        positive_index_B, negative_index = arrays["positive_index_B"], arrays["negative_index"]
        n = len(negative_index) if shared else self.sampling.negatives
        m = len(arrays["extra_index"]) // max(1, pairs)
        negative_index_BN = negative_index if shared else negative_index.view(pairs, n)
        masked_BN = self._masked(pairs, n)
        if self._fuses(reads, shared, n, m) and masked_BN is None:
            index = user_index_B, positive_index_B, negative_index_BN
            unmasked_B = {"unmasked_B": users_UD.new_full((pairs,), n)} if "unmasked_B" in reads else {}
            return {"lazy": _PairScores(users_UD, items_UD, *index), **unmasked_B}
        # Of one call, as each would compute a gradient of all rows: the positive, other positives, own negatives.
        columns = [positive_index_B[:, None], arrays["extra_index"].view(pairs, m)]
        if shared:
            positive_B, negative_BN = shared_scores(users_UD, items_UD, user_index_B, positive_index_B, negative_index)
            extra_BM = pair_scores(users_UD, items_UD, user_index_B, columns[1]) if m else negative_BN[:, :0]
        else:
            item_index = empty([pairs, 1 + m + n], negative_index)
            torch.cat([*columns, negative_index_BN], 1, out=item_index)
            scores = pair_scores(users_UD, items_UD, user_index_B, item_index)
            positive_B1, extra_BM, negative_BN = torch.split(scores, [1, m, n], 1)
            positive_B = positive_B1[:, 0]
        if masked_BN is not None:
            negative_BN = negative_BN.masked_fill(masked_BN, -torch.inf)
        fields: dict[str, Any] = {"positive_B": positive_B, "extra_BM": extra_BM}
        if "unmasked_B" in reads:
            masked_B = self._masked_per_pair(pairs, n)
            fields["unmasked_B"] = (n - masked_B).clamp(max=self.sampling.hardest or n).to(positive_B.dtype)
        if len(arrays["log_q"]):
            fields["log_q_BN"] = arrays["log_q"].view(-1, n)
        of_negatives = self._of_negatives(reads, n)
        if self.sampling.hardest:
            negative_BN, column_BN = negative_BN.topk(min(n, self.sampling.hardest), dim=1, sorted=False)
            of_negatives = {k: value.expand(pairs, n).gather(1, column_BN) for k, value in of_negatives.items()}
        return fields | of_negatives | {"negative_BN": negative_BN}

    def _fuses(self, reads: Collection[str], shared: bool, n: int, m: int) -> bool:
        """Return whether the sums over negatives are computed with their scores, by a kernel for GPUs."""
        rows_UD, fields = self.users[REPRESENTATION], {"positive_B", "negative_BN", "unmasked_B"}
        if (
            not self.sums_exponentials
            or shared
            or m
            or n == 0
            or self.sampling.hardest
            or _SCORES & set(reads) - fields
        ):
            return False
        if torch.are_deterministic_algorithms_enabled() or not has_gpu_kernel(rows_UD):
            return False
        from distrec.kernels.triton.pair_softmax import WIDEST  # here: Triton may be missing

        return rows_UD.shape[1] <= WIDEST

    def _masked(self, pairs: int, n: int) -> Tensor | None:
        """Return which negatives are masked, (B, N) bool; None if none is."""
        masked = self.arrays["masked"]
        if masked.dtype == torch.bool:  # drawn on the device
            return masked if masked.dim() == 2 else None
        if not len(masked):
            return None
        masked_P = torch.zeros(pairs * n, dtype=torch.bool, device=masked.device)
        masked_P[masked] = True
        return masked_P.view(pairs, n)

    def _masked_per_pair(self, pairs: int, n: int) -> Tensor:
        """Return the number of masked negatives of each pair, (B,)."""
        masked = self.arrays["masked"]
        if masked.dim() == 2:  # drawn on the device
            return masked.sum(1)
        if not len(masked):
            return torch.zeros(pairs, dtype=torch.int64, device=masked.device)
        return torch.bincount(masked // max(1, n), minlength=pairs)

    def _of_negatives(self, reads: Collection[str], n: int) -> dict[str, Tensor]:
        """Return what a loss reads of each negative beside its score, (B, N) or (1, N) each."""
        fields, items_UD, index = {}, self.items[REPRESENTATION], self.arrays["negative_index"]
        if "negative_norm2_BN" in reads:
            if self.normalized:
                fields["negative_norm2_BN"] = items_UD.new_ones(1, 1)
            else:
                fields["negative_norm2_BN"] = items_UD.square().sum(1).index_select(0, index).view(-1, n)
        if "negative_logit_BN" in reads:
            fields["negative_logit_BN"] = self.items[LOGIT][:, 0].index_select(0, index).view(-1, n)
        return fields

    def _global_batch(self, users_BD: Tensor, positives_BD: Tensor) -> GlobalBatch:
        all_users_BD, own = self.exchange.gather(users_BD)
        all_items_BD, _ = self.exchange.gather(positives_BD)
        if self._stays:
            user_B, item_B = self.arrays["user_id_B"].long(), self.arrays["positive_id_B"].long()
            return GlobalBatch(all_users_BD, all_items_BD, user_B, item_B, own)
        user_B, owner_B, local_B = self._ids_B3.unbind(1)
        return GlobalBatch(all_users_BD, all_items_BD, user_B, local_B * self.group.workers + owner_B, own)

    @property
    def _stays(self) -> bool:
        """Whether the batch was drawn on the device, where the worker has all items."""
        return "positive_id_B" in self.arrays

    @property
    def _owners_of_items(self) -> Exchange:
        """The workers that hold the catalogue together: this one alone in a step that stays on the device."""
        return Exchange(self.group.device, alone=True) if self._stays else self.group

    @property
    def _owned_positive_B(self) -> Tensor:
        """`Catalogue.positive_B`, int64."""
        if self._stays:
            return self.arrays["positive_id_B"].long()
        _, owner_B, local_B = self._ids_B3.unbind(1)
        return torch.where(owner_B == self.group.rank, local_B, -1)

    @cached_property
    def _ids_B3(self) -> Tensor:
        """User, owner of the positive, and its local index there, of the pairs of all workers, (B, 3) int64."""
        batch, workers = self.batch, self.group.workers
        user_B = batch.users_U[batch.user_index_B].astype(np.int64) * workers + self.group.rank
        owner_U = np.repeat(np.arange(workers), batch.item_splits_W)
        positive = np.stack([owner_U, batch.items_U])[:, batch.positive_index_B]
        ids = np.concatenate([user_B[None], positive]).T.astype(np.int64)
        return self.group.gather(to_device([ids], self.users[REPRESENTATION].device)[0])[0]
