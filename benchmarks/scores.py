"""Scores of pairs with their gradients: implementations side by side, beside the bounds of memory and arithmetic.

    python benchmarks/scores.py --threads 1

The implementations are interleaved, in a random order each round, so that other load affects them alike. Measurements
with several threads suffer most from it: on a shared machine, compare with one thread.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))

from optimizer import Times, rounds
from report import Row, arguments, bar_row, ratios, report
from torch.nn.functional import normalize

from distrec.losses import LossInputs, losses
from distrec.models.scoring import (
    l2_normalize,
    l2_normalize_reference,
    pair_scores,
    pair_scores_reference,
    shared_scores,
)
from distrec.optim.config import OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

DIM = 64
SETTINGS = ((1024, 800), (2048, 64), (8192, 1))  # pairs of a step, negatives of a pair
ITEMS, USERS = 40_981, 29_858  # rows of the tables of Gowalla


class Case(NamedTuple):
    """Random pairs, as indices into unique rows like in a batch, and a gradient of the scores."""

    users_UD: torch.Tensor
    items_VD: torch.Tensor
    user_index_B: torch.Tensor
    item_index_BN: torch.Tensor
    grad_BN: torch.Tensor


def make_case(pairs: int, n: int) -> Case:
    users_U, user_index = torch.randint(USERS, (pairs,)).unique(return_inverse=True)
    items_V, item_index = torch.randint(ITEMS, (pairs, n)).unique(return_inverse=True)
    rows = (torch.randn(len(ids), DIM).requires_grad_() for ids in (users_U, items_V))
    return Case(*rows, user_index.int(), item_index.int(), torch.randn(pairs, n))


def with_gradients(case: Case, function: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """Return a function that computes the scores and the gradients of both rows."""

    def work() -> None:
        case.users_UD.grad = case.items_VD.grad = None
        function(case.users_UD, case.items_VD, case.user_index_B, case.item_index_BN).backward(case.grad_BN)

    return work


def sparse_products(case: Case) -> Callable[[], None]:
    """Return the same by torch's sparse-dense matrix products. The transpose is sorted each time, as in each step."""
    users_UD, items_VD = case.users_UD.detach(), case.items_VD.detach()
    pairs, n = case.item_index_BN.shape
    item_index_P, user_index_B = case.item_index_BN.reshape(-1), case.user_index_B
    start_B = torch.arange(0, pairs * n + 1, n, dtype=torch.int32)
    users_grad = torch.empty_like(users_UD)

    def matrix(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, columns: int) -> torch.Tensor:
        return torch.sparse_csr_tensor(start, column, value, (len(start) - 1, columns), check_invariants=False)

    def work() -> None:
        rows_BD = users_UD.index_select(0, user_index_B)
        pattern = matrix(start_B, item_index_P, torch.zeros(pairs * n), len(items_VD))
        torch.sparse.sampled_addmm(pattern, rows_BD, items_VD.T, beta=0.0)
        grad_P = case.grad_BN.reshape(-1)
        users_grad.zero_().index_add_(0, user_index_B, matrix(start_B, item_index_P, grad_P, len(items_VD)) @ items_VD)
        order_P = item_index_P.argsort(stable=True)
        start_V = torch.zeros(len(items_VD) + 1, dtype=torch.int32)
        start_V[1:] = item_index_P.bincount(minlength=len(items_VD)).cumsum(0)
        matrix(start_V, (order_P // n).int(), grad_P[order_P], pairs) @ rows_BD

    return work


def normalised_pairs(case: Case) -> Callable[[], None]:
    """Return the same as in public research code: gather the rows of every pair, normalise them, multiply."""

    def function(
        users_UD: torch.Tensor, items_VD: torch.Tensor, user_index: torch.Tensor, item_index: torch.Tensor
    ) -> object:
        users_BD, items_BND = normalize(users_UD[user_index], dim=-1), normalize(items_VD[item_index], dim=-1)
        return torch.bmm(items_BND, users_BD[:, :, None])[:, :, 0]

    return with_gradients(case, function)


def implementations(case: Case, quick: bool) -> dict[str, Callable[[], object]]:
    """Return the implementations to compare. With `quick`, large cases leave out those that build (B, N, D)."""
    found = {
        "compiled": with_gradients(case, pair_scores),
        "sparse products of torch": sparse_products(case),
    }
    if not quick or case.item_index_BN.numel() < 200_000:
        found["gather and multiply"] = with_gradients(case, pair_scores_reference)
        found["gather, normalise, multiply"] = normalised_pairs(case)
    if case.item_index_BN.shape[1] > 1:
        shared_N = case.item_index_BN[0]
        found["shared by the batch"] = with_gradients(
            case, lambda u, i, user_index, item_index: shared_scores(u, i, user_index, item_index[:, 0], shared_N)[1]
        )
    return found


def bandwidth(quick: bool) -> float:
    """Return the bytes read and written per second when copying an item table."""
    table = torch.randn(ITEMS, DIM)
    copy = torch.empty_like(table)
    times = rounds({"copy": lambda: lambda: copy.copy_(table)}, 20 if quick else 100)["copy"]
    return 2 * table.nbytes / (statistics.median(times) / 1e3)


def arithmetic(quick: bool) -> float:
    """Return the multiply-adds per second of a matrix product."""
    a = torch.randn(1024, 1024)
    times = rounds({"product": lambda: lambda: a @ a}, 10 if quick else 50)["product"]
    return 1024**3 / (statistics.median(times) / 1e3)


def floor(case: Case, bytes_s: float, products_s: float) -> float:
    """Return a lower bound in milliseconds: the arithmetic of the scores and both gradients, or accessing every array
    once in each of the three, whichever is larger. Repeated reads of a row count as cached."""
    scores = sum(tensor.nbytes for tensor in (case.users_UD, case.items_VD, case.item_index_BN, case.grad_BN))
    moved = 3 * scores  # a gradient reads one table and the indices, and writes the other
    return max(moved / bytes_s, 3 * case.item_index_BN.numel() * DIM / products_s) * 1e3


def measure_setting(pairs: int, n: int, quick: bool, rates: tuple[float, float]) -> list[Row]:
    case, name = make_case(pairs, n), f"B = {pairs:,}, N = {n}"
    given = implementations(case, quick)
    times = rounds({which: lambda w=work: w for which, work in given.items()}, 10 if quick else 30)
    found = [bar_row(f"{name}: {which}", values, "ms") for which, values in times.items()]
    found.append(
        bar_row(
            f"{name}: compiled / sparse products", ratios(times["compiled"], times["sparse products of torch"]), "x", 1
        )
    )
    found.append(Row(f"{name}: floor", floor(case, *rates), "ms", "from the rates of a copy and a matrix product"))
    if n == 800 and torch.get_num_threads() == 2:
        found[0] = bar_row(found[0].name, times["compiled"], "ms", 25)
    return found


def measure_normalize(quick: bool) -> list[Row]:
    """L2 normalisation and its gradient, compiled and in plain torch."""
    rows_VD, grad_VD = torch.randn(ITEMS, DIM).requires_grad_(), torch.randn(ITEMS, DIM)

    def prepare(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        rows_VD.grad = None
        return lambda: function(rows_VD).backward(grad_VD)

    given = {"compiled": l2_normalize, "plain torch": l2_normalize_reference}
    times: Times = rounds(
        {which: lambda f=function: prepare(f) for which, function in given.items()}, 20 if quick else 100
    )
    return [bar_row(f"L2 normalisation, {ITEMS:,} rows: {which}", values, "ms") for which, values in times.items()]


def sparse_step(pairs: int, n: int) -> Callable[[], None]:
    """Return one training step of sampled softmax on unique rows, from the look-up to the update."""
    case, loss = make_case(pairs, n + 1), losses["ssm"]()
    tables = [
        Table(name, Partition(rows, 1, 1), 0, torch.randn(rows, DIM)) for name, rows in (("u", USERS), ("i", ITEMS))
    ]
    optimizers = [SparseOptimizer(table, OptimConfig(), total_steps=10**6) for table in tables]
    local = [torch.arange(len(case.users_UD)), torch.arange(len(case.items_VD))]

    def work() -> None:
        rows = [table.read(ids).requires_grad_() for table, ids in zip(tables, local, strict=True)]
        scores_BN = pair_scores(*map(l2_normalize, rows), case.user_index_B, case.item_index_BN)
        positive_B1, negative_BN = scores_BN.split([1, n], 1)
        loss.share(LossInputs(pairs=pairs, positive_B=positive_B1[:, 0], negative_BN=negative_BN)).backward()
        for optimizer, ids, read in zip(optimizers, local, rows, strict=True):
            optimizer.step(ids, read.grad)

    return work


def naive_step(pairs: int, n: int) -> Callable[[], None]:
    """Return the same step as in public research code: rows of every pair, dense gradients, dense Adam."""
    tables = [torch.nn.Embedding(rows, DIM) for rows in (USERS, ITEMS)]
    adam = torch.optim.Adam([table.weight for table in tables])
    user_B, item_BN = torch.randint(USERS, (pairs,)), torch.randint(ITEMS, (pairs, n + 1))

    def work() -> None:
        users_BD, items_BND = normalize(tables[0](user_B), dim=-1), normalize(tables[1](item_BN), dim=-1)
        scores_BN = torch.bmm(items_BND, users_BD[:, :, None])[:, :, 0]
        adam.zero_grad()
        torch.nn.functional.cross_entropy(scores_BN / 0.1, torch.zeros(pairs, dtype=torch.long)).backward()
        adam.step()

    return work


def measure_steps(pairs: int, n: int, count: int) -> list[Row]:
    """Whole steps of sampled softmax, and the ratio of ours to the naive one."""
    given = {"naive": naive_step(pairs, n), "step": sparse_step(pairs, n)}
    times = rounds({which: lambda w=work: w for which, work in given.items()}, count)
    name, ratio = f"B = {pairs:,}, N = {n}, sampled softmax", ratios(times["step"], times["naive"])
    found = [bar_row(f"{name}: whole step", times["step"], "ms"), bar_row(f"{name}: naive step", times["naive"], "ms")]
    return [*found, bar_row(f"{name}: whole step / naive step", ratio, "x", 1 / 25)]


def measure_shared_softmax(pairs: int, n: int, count: int) -> list[Row]:
    """Softmax with negatives shared by the batch, from unique rows to their gradients: ours, plain torch, and
    torch.compile, which needs a C++ compiler on the machine and compiles at each start."""
    rows = [torch.randn(pairs, DIM).requires_grad_(), torch.randn(pairs + n, DIM).requires_grad_()]
    index = torch.arange(pairs, dtype=torch.int32)
    negative_index, temperature = torch.arange(pairs, pairs + n, dtype=torch.int32), 0.1
    loss = losses["ssm"](temperature=temperature)

    def ours(users_UD: torch.Tensor, items_UD: torch.Tensor) -> torch.Tensor:
        rows = l2_normalize(users_UD), l2_normalize(items_UD)
        positive_B, negative_BN = shared_scores(*rows, index, index, negative_index)
        return loss.per_pair(LossInputs(pairs=pairs, positive_B=positive_B, negative_BN=negative_BN)).sum()

    def plain(users_UD: torch.Tensor, items_UD: torch.Tensor) -> torch.Tensor:
        users_BD, items_UD = normalize(users_UD, dim=1)[index], normalize(items_UD, dim=1)
        negative_B = (users_BD @ items_UD[negative_index].T / temperature).logsumexp(1)
        return torch.nn.functional.softplus(negative_B - (users_BD * items_UD[index]).sum(1) / temperature).sum()

    def prepare(function: Callable[..., torch.Tensor]) -> Callable[[], object]:
        for rows_UD in rows:
            rows_UD.grad = None
        return lambda: function(*rows).backward()

    compiled, start = torch.compile(plain), time.perf_counter()
    prepare(compiled)()
    warm_s, given = time.perf_counter() - start, {"ours": ours, "plain torch": plain, "torch.compile": compiled}
    times = rounds({which: lambda f=function: prepare(f) for which, function in given.items()}, count)
    name = f"B = {pairs:,}, N = {n}, shared softmax"
    found = [bar_row(f"{name}: {which}", values, "ms") for which, values in times.items()]
    return [*found, Row(f"{name}: torch.compile, first call", warm_s, "s")]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch and numba (default: all)")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rates = bandwidth(given.quick), arithmetic(given.quick)
    found = [
        Row("copy of a table, read and written", rates[0] / 1e9, "GB/s"),
        Row("matrix product", rates[1] / 1e9, "G multiply-adds/s"),
    ]
    for pairs, n in SETTINGS:
        found += measure_setting(pairs, n, given.quick, rates)
    found += measure_normalize(given.quick)
    if shutil.which("c++"):  # needed by torch.compile
        found += measure_shared_softmax(*SETTINGS[0], 10 if given.quick else 100)
    found += measure_steps(*((256, 200) if given.quick else SETTINGS[0]), 10)
    title = f"scores and gradients, D = {DIM}, items of {ITEMS:,}, float32, {torch.get_num_threads()} threads"
    report(found, title, given.json)


if __name__ == "__main__":
    main()
