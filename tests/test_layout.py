"""Reads the imports: folders use only those before them in the flow, and Ray and MLflow are imported in a few files."""

import ast
from pathlib import Path

import distrec

ROOT = Path(distrec.__file__).parent
# In the order in which data flow: a part imports from its own line and from those above it.
ORDER = [
    ["core"],
    ["kernels"],
    ["sharding"],
    ["data"],
    ["sampling"],
    ["optim"],
    ["models"],
    ["losses"],
    ["evaluation"],
    ["tracking"],
    ["training"],
    ["tuning"],
    ["cli"],
]
CONTAINED = {
    "ray": {
        "sampling/stream/ray.py",
        "sampling/stream/ray_internal.py",
        "training/cluster.py",
        "training/connection.py",
        "training/driver.py",
        "training/worker.py",
        "tuning/ray_tune.py",
    },
    "mlflow": {"tracking/mlflow.py"},
    "torch.distributed": {"sharding/collectives.py", "testing/ranks.py"},
    "optuna": {"tuning/sampler.py", "tuning/search_figures.py"},
    "rich": {"cli/progress.py", "cli/main.py", "cli/search_progress.py"},
}
TESTS_ONLY = {"testing"}


def imports(file: Path) -> set[str]:
    """Every module a file imports, dotted, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {file.relative_to(ROOT).as_posix(): imports(file) for file in sorted(ROOT.rglob("*.py"))}


def part_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def test_every_part_has_a_place_in_the_order():
    known = {name for line in ORDER for name in line} | TESTS_ONLY | {"__init__"}
    assert {part_of(file) for file in FILES} == known


def test_imports_go_up_the_flow():
    level = {name: k for k, line in enumerate([*ORDER, ["__init__"]]) for name in line}
    wrong = []
    for file, modules in FILES.items():
        for module in modules:
            parts = module.split(".")
            if parts[0] == "distrec" and len(parts) > 1 and parts[1] in level | dict.fromkeys(TESTS_ONLY):
                mine, theirs = part_of(file), parts[1]
                if mine in TESTS_ONLY or mine == theirs:
                    continue
                if theirs in TESTS_ONLY or level[theirs] > level[mine]:
                    wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_no_cycles_between_files():
    names = {"distrec." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in FILES}
    graph = {file: {names[m] for m in modules if m in names} - {file} for file, modules in FILES.items()}
    done, path = set(), []

    def visit(file: str) -> None:
        assert file not in path, " -> ".join([*path[path.index(file) :], file])
        if file not in done:
            path.append(file)
            for other in graph[file]:
                visit(other)
            done.add(path.pop())

    for file in graph:
        visit(file)


def test_containment():
    for package, allowed in CONTAINED.items():
        users = {
            file for file, modules in FILES.items() if any(m == package or m.startswith(package + ".") for m in modules)
        }
        assert users == allowed, package


def test_files_with_one_name_play_one_part():
    """A configuration, a base, or the numba, Triton and readable form of one computation."""
    names = [Path(file).name for file in FILES]
    shared = {
        "__init__.py",
        "config.py",
        "base.py",
        "launch.py",
        "lightgcn.py",  # the reader of its files, and the model
        "dedup.py",
        "optimizer.py",
        "pair_scores.py",
        "topk.py",
    }
    assert {name for name in names if names.count(name) > 1} <= shared
