"""The Ray of a run: the one that is initialized, a cluster to connect to, or one that is started on this machine."""

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ray

from distrec.core.errors import UserError
from distrec.sampling.stream.ray import STREAM_CPUS
from distrec.sampling.stream.ray_internal import find_local_address

Note = Callable[[str], None]

WORKER_CPUS = 1.0
_CONNECT_S = 5.0  # limit for a cluster to answer
_LONGEST_TMPDIR = 39  # bytes: the sockets below have 68 more, and 107 is the limit of the operating system
_MIN_DISK = 64 * 2**20  # bytes, for Ray's logs and sockets
MIN_SHM = 128 * 2**20
"""Bytes of /dev/shm below which Ray's objects lie in files, which is slower. Docker's default is 64 MiB."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keep relative paths relative to the user's folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint is registered at the controller's next poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor whose start takes 3 s of a core, and whose output is unused
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def ray_running(workers: int, verbose: bool = False, note: Note = lambda text: None) -> Iterator[None]:
    """Run the body with a Ray that has room for `workers`; shut Ray down afterwards if it was started here.

    Uses the Ray that is initialized, else connects to RAY_ADDRESS, else starts Ray on this machine. Ray logs errors
    only, unless `verbose`. `note` gets lines on what is unusual here.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    level = logging.INFO if verbose else logging.ERROR
    for logger in ("ray", "ray.data", "ray.train"):
        logging.getLogger(logger).setLevel(level)
    started = not ray.is_initialized()
    if started:
        _start_ray(workers, verbose, note)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _start_ray(workers: int, verbose: bool, note: Note) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine."""
    logs: dict[str, Any] = {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}
    address = _address()
    if address:
        _check_address(address)
        try:
            ray.init(address, **logs)
        except Exception as error:  # Ray has no common base class for what a broken cluster raises
            raise UserError(
                f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {_one_line(error)}\n"
                "Is it running? If it asks for a token, set RAY_AUTH_MODE=token too."
            ) from None
        return
    # On one machine Ray's CPUs are bookkeeping: declare enough that a stream never queues for a worker's CPU.
    cpus = max(os.cpu_count() or 1, math.ceil(workers * (WORKER_CPUS + STREAM_CPUS)))
    folder = _temporary_folder(note)
    try:
        with _token():
            ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **logs)
    except Exception as error:
        raise UserError(f"Ray cannot start on this machine: {_one_line(error)}") from error


def _address() -> str | None:
    """Return RAY_ADDRESS, None where it says to start Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _check_address(address: str) -> None:
    """Raise UserError, within seconds, where no Ray answers at an address: Ray itself tries for minutes."""
    name = f"RAY_ADDRESS={address}"
    target = find_local_address() if address == "auto" else address.removeprefix("ray://")
    if target is None:
        raise UserError(f"{name}: no Ray runs on this machine; start one, or unset RAY_ADDRESS")
    match = re.fullmatch(r"\[?([^/\s]+?)\]?:(\d{1,5})", target)
    if not match or int(match[2]) > 65535:
        advice = "write host:port, ray://host:port or auto, or unset it"
        raise UserError(f"{name} is not the address of a Ray cluster: {advice}")
    try:
        socket.getaddrinfo(match[1], int(match[2]))
    except (OSError, UnicodeError):
        raise UserError(f"{name}: no machine has the name {match[1]}") from None
    if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):
        return  # the channel below has no certificates
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_S)
        except grpc.FutureTimeoutError:
            raise UserError(f"{name}: no Ray answers there; start the cluster, or unset RAY_ADDRESS") from None


def _temporary_folder(note: Note) -> str | None:
    """Return the folder for Ray's sockets and logs, None for its default; note what makes Ray slow.

    Raises:
        UserError: the disk is full.
    """
    root = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    too_long = os.name == "posix" and len(os.fsencode(root)) > _LONGEST_TMPDIR
    if too_long:
        note(f"ray: the path {root} (TMPDIR) is too long for sockets; Ray uses /tmp")
        root = "/tmp"
    with contextlib.suppress(OSError):  # Ray creates the folder, or says why it cannot
        if (free := shutil.disk_usage(root).free) < _MIN_DISK:
            raise UserError(
                f"Ray cannot start: {root} has {free / 2**20:.0f} MiB free; free some space, or set RAY_TMPDIR"
            )
    with contextlib.suppress(OSError):  # not on Linux
        if (free := shutil.disk_usage("/dev/shm").free) < MIN_SHM:
            note(
                f"ray: /dev/shm has {free / 2**20:.0f} MiB free: Ray's objects lie in {root}, which is slower "
                "(Docker: --shm-size=2g)"
            )
    return f"{root}/ray" if too_long else None


@contextlib.contextmanager
def _token() -> Iterator[None]:
    """Give Ray a token of its own within the block where the home folder, to which it writes one, is not writable."""
    folder = Path.home() / ".ray"
    nearest = folder if folder.exists() else folder.parent
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    if writable or (folder / "auth_token").exists() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def describe_connection() -> str:
    """Return which Ray `ray_running` will use, for a log."""
    if ray.is_initialized():
        return "using the running instance"
    address = _address()
    return f"connecting to {address}" if address else "starting on this machine"
