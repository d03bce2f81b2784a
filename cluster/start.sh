#!/usr/bin/env bash
# Starts and stops the Ray cluster that distrec runs on; `start.sh --help` says how, README.md says the rest.
# Everything stands in functions, called by the last line: `up` and `down` feed this file to `bash -s` on the other machines.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: cluster/start.sh COMMAND [options] [-- options of `ray start`]

by hand, or as a step of Slurm:
  head                     start the head on this machine; prints RAY_ADDRESS=ip:port
  worker HEAD[:PORT]       join this machine to that head
  status [HEAD[:PORT]]     list the nodes; run it on one of them
  stop                     stop what head or worker started on this machine, and nothing else
over ssh (without a password; the same python path everywhere):
  up HEAD WORKER...        head on the first machine, worker on the others
  down HEAD WORKER...      stop on each of them, the head last

options:
  --port N                 the head's port, and the first of eight (default 6379; a second cluster needs another)
  --worker-ports MIN-MAX   for the processes that Ray starts (default 10100-10999)
  --ip IP                  this machine's address, where it has several (up: the head's)
  --cpus N                 logical CPUs of a machine (default: what it has); distrec needs 1.5 a worker
  --object-store GIB       memory for Ray's object store on a machine (default: 30 % of it)
  --temp-dir DIR           Ray's logs and sockets, on a local disk (default /tmp/ray)
  --python PATH            the interpreter that has distrec (default: $PYTHON, the .venv beside cluster/, python3)
  --no-dashboard           the head's dashboard is otherwise on, at its port 8265, for this machine and with Ray's token
  --block                  head, worker: stay in the foreground, and stop with the terminal or the Slurm step
HELP
}

has_value() { [[ -n ${2:-} ]] || die "$1 needs a value (--help)"; }

die() { echo "start.sh: $*" >&2; exit 1; }

main() {
  local command=${1:---help}
  case $command in
    -h | --help | help) usage; return ;;
    head | worker | status | stop | up | down) shift ;;
    *) die "unknown command '$command': head, worker, status, stop, up or down (--help)" ;;
  esac
  port=6379 worker_ports=10100-10999 ip="" cpus="" object_store="" temp_dir="" python=${PYTHON:-} dashboard=true block=false
  ray_options=()
  local hosts=()
  while (($#)); do
    case $1 in
      -h | --help) usage; return ;;
      --port) port=${2-}; has_value "$@"; shift 2 ;;
      --worker-ports) worker_ports=${2-}; has_value "$@"; shift 2 ;;
      --ip) ip=${2-}; has_value "$@"; shift 2 ;;
      --cpus) cpus=${2-}; has_value "$@"; shift 2 ;;
      --object-store) object_store=${2-}; has_value "$@"; shift 2 ;;
      --temp-dir) temp_dir=${2-}; has_value "$@"; shift 2 ;;
      --python) python=${2-}; has_value "$@"; shift 2 ;;
      --no-dashboard) dashboard=false; shift ;;
      --block) block=true; shift ;;
      --) shift; ray_options=("$@"); break ;;
      -*) die "unknown option $1 (--help)" ;;
      *) hosts+=("$1"); shift ;;
    esac
  done
  [[ $worker_ports =~ ^[0-9]+-[0-9]+$ ]] || die "--worker-ports takes MIN-MAX, for instance 10100-10999"
  address="" state=$HOME/.cache/distrec-cluster/$(hostname)-$port  # the home may be shared between machines
  local n=${#hosts[@]}
  case $command in
    head) ((n == 0)) || die "head takes no host: run it on the head, or use 'up ${hosts[*]}'"; start_head ;;
    worker) ((n == 1)) || die "worker takes the head's address: worker HEAD[:PORT]"; start_worker "${hosts[0]}" ;;
    status) ((n <= 1)) || die "status takes one address at most"; status "${hosts[0]:-}" ;;
    stop) ((n == 0)) || die "stop takes no host: run it on each machine, or use 'down ${hosts[*]}'"; stop ;;
    up) ((n >= 1)) || die "up takes the head and the workers: up HEAD WORKER..."; up "${hosts[@]}" ;;
    down) ((n >= 1)) || die "down takes the head and the workers: down HEAD WORKER..."; down "${hosts[@]}" ;;
  esac
}

# ---- one machine

start_head() {
  need_environment
  keep_given_token
  ensure_token
  [[ -n $ip ]] || ip=$(own_ip 8.8.8.8)
  [[ $ip != 127.* ]] || die "found no address of this machine that others can reach: name it with --ip"
  # Without the dashboard Ray never gives back the CPUs of a run whose `distrec train` was killed.
  start --head --port "$port" --ray-client-server-port $((port + 6)) --include-dashboard "$dashboard" --disable-usage-stats
  say_address
  finish
}

start_worker() {
  local head=${1%%:*}
  [[ $1 != *:* ]] || port=${1##*:}
  state=$HOME/.cache/distrec-cluster/$(hostname)-$port
  need_environment
  keep_given_token
  have_token || die "no Ray token on $(hostname): copy the head's ~/.ray/auth_token to the same place here (mode 600)"
  need_reach "$head" "$port"
  [[ -n $ip ]] || ip=$(own_ip "$head")
  head=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
  address=$head:$port
  start --address "$address"
  finish
}

# Finds the interpreter, and what names the version: the number, and a digest of the sources, which tells two check-outs apart.
need_environment() {
  local here candidate
  here=$(dirname -- "${BASH_SOURCE[0]:-.}")/..
  for candidate in "$python" "$here/.venv/bin/python" python3; do
    [[ -n $candidate ]] || continue
    version=$("$candidate" - 2>/dev/null <<'PYTHON' || true
import hashlib, importlib.util, pathlib
import distrec
importlib.util.find_spec("ray").origin
root, digest = pathlib.Path(distrec.__file__).parent, hashlib.sha256()
for file in sorted(root.rglob("*.py")):
    digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
print(f"{distrec.__version__}-{digest.hexdigest()[:8]}")
PYTHON
    )
    [[ -z $version ]] || { python=$(command -v "$candidate"); return 0; }
    [[ $candidate != "$python" ]] || break  # one that was asked for, and no other
  done
  die "no distrec on $(hostname) for '$candidate': install it there (make train), or name the interpreter with --python"
}

keep_given_token() {  # what `on` sent, for Ray and for whoever runs distrec here later
  local file=$HOME/.ray/auth_token
  [[ -n ${given_token:-} ]] || return 0
  if ! [[ -s $file ]]; then (umask 077 && mkdir -p "$HOME/.ray" && printf %s "$given_token" >"$file"); fi
  [[ $(<"$file") == "$given_token" ]] ||
    die "$(hostname) has another Ray token in ~/.ray/auth_token: copy yours there, or export RAY_AUTH_TOKEN on both machines"
}

have_token() { [[ -n ${RAY_AUTH_TOKEN:-} || -n ${RAY_AUTH_TOKEN_PATH:-} || -s $HOME/.ray/auth_token ]]; }

ensure_token() {
  have_token || (umask 077 && "$python" -m ray.scripts.scripts get-auth-token --generate) >/dev/null 2>&1 ||
    die "could not write ~/.ray/auth_token"
}

need_reach() {
  timeout 10 bash -c "</dev/tcp/$1/$2" 2>/dev/null ||
    die "cannot reach $1:$2 from $(hostname): is the head started, and port $2 open to this machine?"
}

own_ip() {  # the address from which this machine reaches $1; nothing is sent
  "$python" -c 'import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    s.connect((sys.argv[1], 9))
    print(s.getsockname()[0])
except OSError:
    print("127.0.0.1")' "$1"
}

interface_of() {
  "$python" -c 'import ray, psutil, sys
print(next((name for name, has in psutil.net_if_addrs().items() if any(a.address == sys.argv[1] for a in has)), ""))' "$1"
}

start() {  # starts Ray in the background as our child, waits until it runs, compares the versions
  ! running || die "already started on $(hostname) (process $(<"$state.pid")): cluster/start.sh stop --port $port"
  mkdir -p "$(dirname "$state")"
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
  # Processes of torch otherwise look up the host's own name, which many machines answer with 127.0.1.1.
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$(interface_of "$ip")}
  [[ -n $GLOO_SOCKET_IFNAME ]] || die "no interface of $(hostname) has the address $ip: give one that it has with --ip"
  local options=(
    "$@" --block --node-ip-address "$ip" --labels "distrec=$version"
    --node-manager-port $((port + 1)) --object-manager-port $((port + 2)) --runtime-env-agent-port $((port + 3))
    --dashboard-agent-grpc-port $((port + 4)) --metrics-export-port $((port + 5)) --dashboard-agent-listen-port $((port + 7))
    --min-worker-port "${worker_ports%-*}" --max-worker-port "${worker_ports#*-}"
  )
  [[ -z $cpus ]] || options+=(--num-cpus "$cpus")
  [[ -z $temp_dir ]] || options+=(--temp-dir "$temp_dir")
  [[ -z $object_store ]] || options+=(--object-store-memory $((object_store << 30)))
  # In a session of its own: the end of a terminal or of ssh is not the end of the cluster.
  setsid "$python" -m ray.scripts.scripts start "${options[@]}" ${ray_options[@]+"${ray_options[@]}"} \
    </dev/null >"$state.log" 2>&1 &
  echo $! >"$state.pid"
  : "${address:=$ip:$port}"
  echo "$address" >"$state.address"
  local tries
  for ((tries = 0; tries < 240; tries++)); do
    if grep -q "Ray runtime started" "$state.log"; then break; fi
    running || break
    sleep 0.5
  done
  if ! running || ((tries == 240)); then
    stop_quietly
    tail -n 20 "$state.log" >&2
    die "Ray did not start on $(hostname); all it said is in $state.log. A 'Version mismatch' means another Ray or Python than" \
      "the head's: install the head's versions here (pip install -c constraints.txt)"
  fi
  if ! nodes "$address" "$version"; then
    stop_quietly
    die "$(hostname) was not joined: bring distrec there to the head's state (git pull, pip install), and start it again"
  fi
}

say_address() {
  echo "RAY_ADDRESS=$address"
  echo "next: cluster/start.sh worker $address on the other machines, then on any of them:" >&2
  echo "      RAY_AUTH_MODE=token RAY_ADDRESS=$address distrec train train.workers=..." >&2
}

finish() {
  $block || { disown; return 0; }
  trap 'stop_quietly; exit 0' INT TERM HUP
  wait "$(<"$state.pid")" || die "Ray ended; see $state.log"
}

running() {  # not a zombie, which a container without an init keeps, nor another's process under an old number
  [[ -s $state.pid ]] && grep -qsa ray.scripts.scripts "/proc/$(<"$state.pid")/cmdline"
}

stop() {
  running || { rm -f "$state.pid"; echo "nothing started on $(hostname) with port $port"; return 0; }
  stop_quietly
  echo "stopped on $(hostname)"
}

stop_quietly() {
  local pid tries left stat fields
  pid=$(<"$state.pid")
  if running; then
    kill -TERM "$pid"
    for ((tries = 0; tries < 40; tries++)); do
      running || break
      sleep 0.5
    done
    # What outlived it: `start` gave Ray a session of its own, so this ends nobody else's processes.
    for stat in /proc/[0-9]*/stat; do
      { read -r left <"$stat"; } 2>/dev/null || continue
      read -ra fields <<<"${left##*) }"
      [[ ${fields[3]:-} != "$pid" ]] || kill -KILL "${stat//[^0-9]/}" 2>/dev/null || true
    done
  fi
  rm -f "$state.pid" "$state.address"
}

status() {
  need_environment
  [[ -n ${1:-} || -s $state.address ]] || die "nothing started on $(hostname) with port $port: name the head"
  local at=${1:-$(<"$state.address")}
  [[ $at == *:* ]] || at=$at:$port
  need_reach "${at%:*}" "${at##*:}"
  nodes "$at" ""
}

# Prints the nodes of the cluster at $1; fails if the head's distrec is not $2.
nodes() {
  RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} timeout 120 "$python" - "$@" <<'PYTHON'
import logging, sys
import ray

address, version = sys.argv[1:]
ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
alive = [node for node in ray.nodes() if node["Alive"]]
total = {}
for node in alive:
    has = node["Resources"]
    head = "node:__internal_head__" in has
    of = node["Labels"].get("distrec", "unknown")
    print(f'{node["NodeManagerAddress"]:<15} {"head" if head else "worker":<6} distrec {of}  '
          f'{has.get("CPU", 0):g} CPUs  {has.get("GPU", 0):g} GPUs', file=sys.stderr)
    if head and version and of != version:
        sys.exit(f"the head has distrec {of}, this machine {version}")
ray.shutdown()
PYTHON
}

# ---- many machines, over ssh

up() {
  local head=$1 host options=() said
  shift
  [[ -z $python ]] || PYTHON=$python
  need_environment  # the same path is used everywhere
  ensure_token
  options=(--python "$python" --port "$port" --worker-ports "$worker_ports")
  [[ -z $cpus ]] || options+=(--cpus "$cpus")
  [[ -z $object_store ]] || options+=(--object-store "$object_store")
  [[ -z $temp_dir ]] || options+=(--temp-dir "$temp_dir")
  local head_options=()
  [[ -z $ip ]] || head_options+=(--ip "$ip")
  $dashboard || head_options+=(--no-dashboard)
  said=$(on "$head" head "${options[@]}" ${head_options[@]+"${head_options[@]}"} -- ${ray_options[@]+"${ray_options[@]}"})
  address=$(sed -n 's/^RAY_ADDRESS=//p' <<<"$said")
  for host in "$@"; do
    on "$host" worker "$address" "${options[@]}" -- ${ray_options[@]+"${ray_options[@]}"} ||
      die "$host did not join; the others run: mend it and call worker there, or take all down: cluster/start.sh down $head $*"
  done
  echo "RAY_ADDRESS=$address"
}

down() {
  local head=$1 host failed=0
  shift
  for host in "$@" "$head"; do on "$host" stop --port "$port" || failed=1; done
  return $failed
}

# Runs a command of this file on a machine. The token goes through the pipe, where no list of processes shows it.
on() {
  local host=$1 token=${RAY_AUTH_TOKEN:-}
  shift
  [[ -n $token ]] || ! have_token || token=$(<"${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}")
  { printf 'given_token=%q\n' "$token"; cat -- "${BASH_SOURCE[0]}"; } | ssh -o BatchMode=yes "$host" bash -s -- "$(printf '%q ' "$@")"
}

main "$@"
