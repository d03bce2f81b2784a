"""Command line: each command loads a configuration and calls one function, and imports heavy modules only then."""

import argparse
import contextlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distrec import __version__
from distrec.cli import plan, report, serve, study, tune
from distrec.core.errors import UNWRITABLE, UserError, WorkerLost

if TYPE_CHECKING:
    from distrec.training.config import Config
    from distrec.training.evaluate import Evaluation
    from distrec.training.run_folder import Result

_BROKEN_PIPE = 128 + 13  # as shells report a program that SIGPIPE ended
_WORDS = "a configuration file (YAML) and overrides such as optim.lr=0.01, both optional"
_IMPORTS = "a configuration or run.imports=MODULE adds the parts that its modules register"
_TRAIN_EXAMPLES = """\
examples:
  distrec train                                        synthetic data, 2 workers: a first look
  distrec train configs/gowalla_mf_ssm.yaml data.source=path/to/gowalla
  distrec train data.source=mine.csv data.test_fraction=0.2 train.workers=4
  distrec train configs/gowalla_mf_ssm.yaml data.source=path/to/gowalla run.resume=true

  distrec train configs/gowalla_mf_ssm.yaml data.source=path/to/gowalla loss.name=bpr sampling.negatives=1

`distrec keys` lists all keys with default, type and description, `distrec keys loss` the losses with their options.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Exits with 0, 1 (internal error, lost worker, failed check), 2 (user error), 130 (Ctrl-C) or 141 (closed output).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _check_text(argv)
    parser = _parser()
    if not argv:
        parser.print_help()
        sys.exit(2)
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # argparse does not collect overrides that follow an option: --quiet optim.lr=0.1
        if not hasattr(arguments, "words") or any(word.startswith("-") or "=" not in word for word in rest):
            parser.error(f"{arguments.command}: unknown arguments {' '.join(rest)}; see distrec {arguments.command} -h")
        arguments.words += rest
    try:
        arguments.function(arguments)
        if sys.stdout is not None:  # None if the shell closed it
            sys.stdout.flush()
    except UserError as error:
        print(f"distrec: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python reports the pipe again at its end
        sys.exit(_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in UNWRITABLE and error.filename is None:
            raise
        print(f"distrec: cannot write or read a file: {error}", file=sys.stderr)
        sys.exit(2)
    except WorkerLost as lost:
        print(f"distrec: {lost}\n{_resume_hint(argv, lost.folder)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        hint = f" {_resume_hint(argv, stop.args[0])}" if stop.args else ""
        print(f"\ndistrec: stopped.{hint}", file=sys.stderr)
        sys.exit(130)


def _check_text(argv: Sequence[str]) -> None:
    """Let any text be printed, and exit if an argument is not text in the encoding of file names."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for word in argv:
        if any("\udc80" <= letter <= "\udcff" for letter in word):
            advice = "rename the file, or use a UTF-8 locale, such as LC_ALL=C.UTF-8"
            print(
                f"distrec: {os.fsencode(word)!r} is not text in {sys.getfilesystemencoding()}: {advice}",
                file=sys.stderr,
            )
            sys.exit(2)


def _resume_hint(argv: Sequence[str], folder: str) -> str:
    """Return the command that resumes the run that the command `argv` started."""
    again = [word for word in argv if not word.startswith(("run.dir=", "run.resume="))]
    return f"Go on with:\ndistrec {shlex.join([*again, f'run.dir={folder}', 'run.resume=true'])}"


def _parser() -> argparse.ArgumentParser:
    description = "Train collaborative-filtering embedding models on a Ray cluster."
    parser = argparse.ArgumentParser(prog="distrec", description=description)
    parser.add_argument("--version", action="version", version=f"distrec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _add(commands, "train", _train, "prepare the data if necessary, train, and evaluate on the test part")
    command.epilog = _TRAIN_EXAMPLES
    command.add_argument("words", nargs="*", metavar="CONFIG | key=value", help=_WORDS)
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print only the result")
    loudness.add_argument("--verbose", action="store_true", help="also print the logs of Ray and of the workers")

    command = _add(commands, "tune", tune.run, "search for the best values of some keys; refit and test the best run")
    tune.add_arguments(command)

    text = "run a study: all combinations of some keys with several seeds, compared in a table and figures"
    study.add_arguments(_add(commands, "study", study.run, text))

    command = _add(commands, "prepare", _prepare, "prepare raw interactions for training, and print the folder")
    command.add_argument("words", nargs="*", metavar="CONFIG | key=value", help=_WORDS)

    command = _add(commands, "evaluate", _evaluate, "evaluate the last checkpoint of a run, in this process")
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("words", nargs="*", metavar="key=value", help="overrides, for instance eval.k=10,20,50")
    command.add_argument("--part", choices=("test", "valid"), default="test", help="part of the data (default: test)")

    command = _add(commands, "recommend", _recommend, "recommend items to users of a run, by the ids in your data")
    serve.add_recommend(command)

    command = _add(commands, "export", _export, "export the vectors of a run with the ids in your data")
    serve.add_export(command)

    command = _add(commands, "report", _report, "compare runs in one HTML file, which needs no network")
    report.add_report(command)

    text = "print counts, density and degree quantiles of a data set, or the result of a run"
    command = _add(commands, "info", _info, text)
    command.add_argument("path", type=Path, metavar="PATH", help="raw data, a prepared folder, or a run folder")
    command.add_argument("words", nargs="*", metavar="key=value", help="overrides for reading raw data, as for prepare")

    command = _add(commands, "doctor", _doctor, "check this machine: what will work here, and what will not")
    command.add_argument("words", nargs="*", metavar="CONFIG | key=value", help=_WORDS)

    command = _add(commands, "plan", _plan, "print memory, traffic and step time of a run, without starting it")
    command.add_argument("words", nargs="*", metavar="CONFIG | key=value", help=_WORDS)
    plan.add_arguments(command)

    command = _add(commands, "keys", _keys, "list the configuration keys with default, type and description")
    text = "a section, as optim; a key, as temperature; or a part, as loss.name=ssm; default: all"
    command.add_argument("words", nargs="*", metavar="SECTION | KEY | CONFIG | key=value", help=f"{text}; {_IMPORTS}")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, function: object, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(function=function)
    return command


def _load(words: Sequence[str]) -> tuple["Config", str]:
    """Load the configuration that the words of a command line name; return it and its name."""
    from distrec.training.config import load_config

    files = [word for word in words if "=" not in word or os.path.isfile(word)]
    if files and (Path(files[0]).suffix not in ("", ".yaml", ".yml") or os.path.isdir(os.path.expanduser(files[0]))):
        raise UserError(
            f"{files[0]} is not a configuration file; to train on it: {shlex.quote(f'data.source={files[0]}')}"
        )
    if len(files) > 1:
        raise UserError(f"one configuration file at a time; got {', '.join(files)}")
    path = Path(files[0]) if files else None
    overrides = [word for word in words if word not in files]
    config = load_config(path, overrides, _note)
    return config, path.stem if path else "distrec"


def _train(arguments: argparse.Namespace) -> None:
    config, name = _load(arguments.words)
    from distrec.cli.progress import Mode, Progress
    from distrec.training.driver import train

    mode: Mode = "quiet" if arguments.quiet else "plain" if arguments.verbose else "auto"
    with Progress(mode) as progress:
        result = train(config, name, progress, verbose=arguments.verbose)
    _show(result, quiet=arguments.quiet)


def _show(result: "Result", quiet: bool) -> None:
    from distrec.cli.progress import results_table
    from distrec.training.run_folder import RunFolder

    results_table([{"metric": key, "value": value} for key, value in result.metrics.items()])
    _print_untrained(result, "test")
    if result.tested_epoch not in (None, result.epochs):
        print(f"best epoch  {result.tested_epoch} of {result.epochs}")
    print(f"run folder  {result.folder}")
    uri = RunFolder(result.folder).facts().get("mlflow_uri")
    if uri and not quiet:
        mlflow = shutil.which("mlflow") or str(Path(sys.executable).with_name("mlflow"))
        command = shlex.join([mlflow, "ui", "--workers", "1", "--backend-store-uri", uri])
        print(f"MLflow      {uri if uri.startswith('http') else command}")


def _print_untrained(found: "Result | Evaluation", part: str) -> None:
    if found.untrained_users or found.untrained_items:
        print(
            f"{found.untrained_users:,} users and {found.untrained_items:,} items have no training interactions; "
            f"{100 * found.untrained_share:.3g} % of the {part} interactions are with such items"
        )


def _prepare(arguments: argparse.Namespace) -> None:
    config, _ = _load(arguments.words)
    from distrec.data.prepare import prepare

    with _reporting():
        dataset = prepare(config.data, log=print)
    _print_rows(dataset.summary())
    print(f"\n{dataset.path}")


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Show on standard error what the body is doing, if it takes long."""
    from distrec.cli.progress import Progress, Terminal
    from distrec.core.status import reporting

    with Progress(console=Terminal(stderr=True)) as progress, reporting(progress):
        yield


def _note(text: str) -> None:
    print(f"distrec: note: {text}", file=sys.stderr)


def _evaluate(arguments: argparse.Namespace) -> None:
    from distrec.cli.progress import results_table
    from distrec.training.evaluate import evaluate

    with _reporting():
        found = evaluate(arguments.run, arguments.part, arguments.words, _note)
    unfinished = "" if found.finished else ": the run is not finished"
    print(f"{'best epoch' if found.best else 'checkpoint after epoch'} {found.epoch} of {found.epochs}{unfinished}")
    results_table([{"metric": key, "value": value} for key, value in found.metrics.items()])
    print(f"over {found.users:,} users; {found.left_out_users:,} have no {arguments.part} items, or no training items")
    _print_untrained(found, arguments.part)


def _recommend(arguments: argparse.Namespace) -> None:
    with _reporting():
        serve.recommend(arguments, _note)


def _export(arguments: argparse.Namespace) -> None:
    with _reporting():
        serve.export(arguments, _note)


def _report(arguments: argparse.Namespace) -> None:
    with _reporting():
        report.report(arguments, _note)


def _info(arguments: argparse.Namespace) -> None:
    from distrec.core.section import expand_user
    from distrec.data.prepare import prepare
    from distrec.training.run_folder import RunFolder

    if report.is_search(path := expand_user(arguments.path)):
        tune.show_folder(path)
        return
    folder = RunFolder(path)
    if not folder.config_file.exists():
        if runs := sorted(file.parent for file in path.glob("*/config.yaml")):
            folders = f"{len(runs)} run folder{'s' * (len(runs) > 1)}"
            raise UserError(f"{path} holds {folders}; give one, for example {runs[-1]}")
        config, _ = _load([*arguments.words, f"data.source={arguments.path}"])
        with _reporting():
            rows = prepare(config.data).summary()
        _print_rows(rows)
        return
    result, config = folder.result(), folder.config()
    loss = "" if "loss" in config.unused() else f" with {config.loss.name}"
    print(f"run folder of {config.model.name}{loss} on {config.data.source}")
    if result is None:
        again = ["distrec", "train", str(folder.config_file), f"run.dir={folder.path}", "run.resume=true"]
        print(f"not finished; resume with\n{shlex.join(again)}")
    else:
        _show(result, quiet=False)


def _doctor(arguments: argparse.Namespace) -> None:
    config, _ = _load(arguments.words)
    from distrec.training.doctor import examine

    with _reporting():
        findings = list(examine(config))
    _print_rows([(f"{'ok  ' if found.ok else 'FAIL'}  {found.what}", found.text) for found in findings])
    sys.exit(0 if all(found.ok for found in findings) else 1)


def _plan(arguments: argparse.Namespace) -> None:
    config, _ = _load([*arguments.words, *plan.overrides(arguments)])
    with _reporting():
        plan.run(arguments, config)


def _keys(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from distrec.core.options import describe, selected
    from distrec.tuning.config import SearchConfig

    settings = [word for word in arguments.words if "=" in word or Path(word).suffix in (".yaml", ".yml")]
    words = [word for word in arguments.words if word not in settings]
    if settings:
        _load(settings)  # imports the modules that register parts
    known = list(describe(SearchConfig))
    parts = [word for word in settings if any(option.title == word for option in known)]
    for word in words:
        if not any(option.matches(word) for option in known):
            sections = dict.fromkeys(option.key.split(".")[0] for option in known)
            raise UserError(f"no key begins or ends with {word!r}; the sections are {', '.join(sections)}")
    console = Console(highlight=False)
    for key, kind, default, text, depth in selected(known, [*words, *parts]):
        title = Text.assemble((key, "bold" if kind else "bold cyan"), "=", default, (f"   {kind}", "dim"))
        console.print(Padding(title, (0, 0, 0, 4 * depth)))
        console.print(Padding(Text(text), (0, 0, 0, 4 * depth + 4)))


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
