"""The address of a cluster is checked before Ray uses it, and Ray starts where folders are not as it expects."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest
import ray

from distrec.core.errors import UserError
from distrec.training import connection
from distrec.training.connection import describe_connection, ray_running


@pytest.fixture(autouse=True)
def no_ray():
    """Fail where Ray runs already, as `ray_running` would use it (see `pytest_collection_modifyitems`)."""
    assert not ray.is_initialized()


@pytest.fixture
def silent_port():
    """Return the port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_port():
    """Return the port of a server that answers everything with an HTTP error."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    with server.accept()[0] as client:
                        client.recv(100)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "address",
    [
        *("garbage", "127.0.0.1", "localhost:", ":6379", "host:port", "127.0.0.1:99999", "127.0.0.1:-1", "1:2:x"),
        *("http://127.0.0.1:8265", "tcp://127.0.0.1:6379", "ray://", "ray://head", "redis:6379/0", "a b:6379"),
    ],
)
def test_what_is_no_address_is_refused_at_once(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match="^RAY_ADDRESS=.* is not the address of a Ray cluster: write host:port"),
        ray_running(1),
    ):
        pass


def test_an_unknown_machine_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-machine.invalid:6379")
    with pytest.raises(UserError, match="no machine has the name no-such-machine.invalid"), ray_running(1):
        pass


@pytest.mark.parametrize(("scheme", "server"), [("", "closed"), ("ray://", "silent"), ("", "web")])
def test_an_address_where_no_ray_answers_is_refused_in_seconds(monkeypatch, silent_port, web_port, scheme, server):
    assert connection._CONNECT_S <= 5
    monkeypatch.setattr(connection, "_CONNECT_S", 1.0)
    port = {"closed": 1, "silent": silent_port, "web": web_port}[server]
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
    started = time.monotonic()
    with (
        pytest.raises(UserError, match=rf"^RAY_ADDRESS={scheme}127.0.0.1:{port}: no Ray answers there"),
        ray_running(1),
    ):
        pass
    assert time.monotonic() - started < 11


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_empty_address_starts_ray_on_this_machine(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert describe_connection() == "starting on this machine"


def test_a_path_too_long_for_sockets_is_replaced_with_a_note(monkeypatch, tmp_path):
    notes: list[str] = []
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for length, folder in ((39, None), (40, "/tmp/ray"), (150, "/tmp/ray")):
        monkeypatch.setenv("TMPDIR", "/" + "x" * (length - 1))
        notes.clear()
        assert connection._temporary_folder(notes.append) == folder
        assert any("too long for sockets" in note for note in notes) == bool(folder)


def test_the_home_gets_no_token_where_it_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    for home, given in ((tmp_path, False), (Path("/proc/self"), True)):
        monkeypatch.setenv("HOME", str(home))
        with connection._token():
            assert ("RAY_AUTH_TOKEN" in os.environ) == given
        assert "RAY_AUTH_TOKEN" not in os.environ
