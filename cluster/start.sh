#!/usr/bin/env bash
# Starts and stops a Ray cluster for distrec. Usage: `start.sh --help` and README.md.
# All code is in functions and runs from the last line, because `up` and `down` pipe this file to `bash -s` on each machine.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: cluster/start.sh COMMAND [options] [-- options of `ray start`]

by hand, or as a step of Slurm:
  head                     start the head on this machine; prints RAY_ADDRESS=ip:port
  worker HEAD[:PORT]       join this machine to the cluster of a head
  status [HEAD[:PORT]]     list the nodes; to be run on one of them
  stop                     stop what head or worker started on this machine, and no other Ray
over ssh (without a password; the same python path everywhere):
  up HEAD WORKER...        run head on the first machine and worker on the others
  down HEAD WORKER...      run stop on each of them, on the head last

options:
  --port N                 port of the head, the first of eight ports (default 6379; a second cluster needs another)
  --worker-ports MIN-MAX   ports of the processes that Ray starts (default 10100-10999)
  --ip IP                  address of this machine, if it has several (up: of the head)
  --cpus N                 logical CPUs of a machine (default: all); distrec needs 1.5 a worker
  --object-store GIB       size of Ray's object store on a machine (default: 30 % of its memory)
  --temp-dir DIR           folder of Ray's logs and sockets, on a local disk (default /tmp/ray)
  --python PATH            interpreter that has distrec (default: $PYTHON, the .venv beside cluster/, python3)
  --no-dashboard           no dashboard on the head (default: port 8265, reachable from the head alone, with Ray's token)
  --block                  head, worker: stay in the foreground, and stop when the terminal or the Slurm step ends
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
  [[ $worker_ports =~ ^[0-9]+-[0-9]+$ ]] || die "--worker-ports needs MIN-MAX, for instance 10100-10999"
  address="" state=$HOME/.cache/distrec-cluster/$(hostname)-$port  # machines may share a home folder
  local n=${#hosts[@]}
  case $command in
    head) ((n == 0)) || die "head has no host argument: run it on the head, or use 'up ${hosts[*]}'"; start_head ;;
    worker) ((n == 1)) || die "worker needs the head's address: worker HEAD[:PORT]"; start_worker "${hosts[0]}" ;;
    status) ((n <= 1)) || die "status has at most one address argument"; status "${hosts[0]:-}" ;;
    stop) ((n == 0)) || die "stop has no host argument: run it on each machine, or use 'down ${hosts[*]}'"; stop ;;
    up) ((n >= 1)) || die "up needs the head and the workers: up HEAD WORKER..."; up "${hosts[@]}" ;;
    down) ((n >= 1)) || die "down needs the head and the workers: down HEAD WORKER..."; down "${hosts[@]}" ;;
  esac
}

# ---- one machine

start_head() {
  need_environment
  keep_given_token
  ensure_token
  [[ -n $ip ]] || ip=$(own_ip 8.8.8.8)
  [[ $ip != 127.* ]] || die "found no address of this machine that others can reach: set it with --ip"
  # Without the dashboard Ray never releases the CPUs of a run whose `distrec train` was killed.
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

# Sets `python` to the interpreter and `version` to distrec's version with a digest of its sources, which differs between checkouts.
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
    [[ $candidate != "$python" ]] || break  # an interpreter given by --python or PYTHON has no substitute
  done
  die "no distrec on $(hostname) for '$candidate': install it there (make train), or set the interpreter with --python"
}

keep_given_token() {  # stores the token that `on` sent, for Ray and for later runs of distrec on this machine
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

own_ip() {  # prints the address from which this machine reaches $1, without sending a packet
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

start() {  # starts Ray in the background as a child process, polls until it runs, compares the versions
  ! running || die "already started on $(hostname) (process $(<"$state.pid")): cluster/start.sh stop --port $port"
  mkdir -p "$(dirname "$state")"
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
  # Otherwise torch resolves the host's own name, which is 127.0.1.1 on many machines.
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$(interface_of "$ip")}
  [[ -n $GLOO_SOCKET_IFNAME ]] || die "no interface of $(hostname) has the address $ip: set another with --ip"
  local options=(
    "$@" --block --node-ip-address "$ip" --labels "distrec=$version"
    --node-manager-port $((port + 1)) --object-manager-port $((port + 2)) --runtime-env-agent-port $((port + 3))
    --dashboard-agent-grpc-port $((port + 4)) --metrics-export-port $((port + 5)) --dashboard-agent-listen-port $((port + 7))
    --min-worker-port "${worker_ports%-*}" --max-worker-port "${worker_ports#*-}"
  )
  [[ -z $cpus ]] || options+=(--num-cpus "$cpus")
  [[ -z $temp_dir ]] || options+=(--temp-dir "$temp_dir")
  [[ -z $object_store ]] || options+=(--object-store-memory $((object_store << 30)))
  # In a session of its own, so that the cluster outlives the terminal or the ssh connection.
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
    die "Ray did not start on $(hostname); its output is in $state.log. 'Version mismatch' means that Ray or Python differs from" \
      "the head's: install the head's versions here (pip install -c constraints.txt)"
  fi
  if ! nodes "$address" "$version"; then
    stop_quietly
    die "$(hostname) did not join: update distrec there to the head's version (git pull, pip install), and start it again"
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

running() {  # false for a zombie, which a container without an init keeps, and for an unrelated process with a reused id
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
    # Kill the remaining processes of Ray's session, which `start` created: it contains no others.
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
  [[ -n ${1:-} || -s $state.address ]] || die "nothing started on $(hostname) with port $port: give the address of the head"
  local target=${1:-$(<"$state.address")}
  [[ $target == *:* ]] || target=$target:$port
  need_reach "${target%:*}" "${target##*:}"
  nodes "$target" ""
}

# Prints the nodes of the cluster at $1; fails if the version of distrec on the head is not $2.
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
    found = node["Labels"].get("distrec", "unknown")
    print(f'{node["NodeManagerAddress"]:<15} {"head" if head else "worker":<6} distrec {found}  '
          f'{has.get("CPU", 0):g} CPUs  {has.get("GPU", 0):g} GPUs', file=sys.stderr)
    if head and version and found != version:
        sys.exit(f"the head has distrec {found}, this machine {version}")
ray.shutdown()
PYTHON
}

# ---- many machines, over ssh

up() {
  local head=$1 host options=() output
  shift
  [[ -z $python ]] || PYTHON=$python
  need_environment  # the same path is used on all machines
  ensure_token
  options=(--python "$python" --port "$port" --worker-ports "$worker_ports")
  [[ -z $cpus ]] || options+=(--cpus "$cpus")
  [[ -z $object_store ]] || options+=(--object-store "$object_store")
  [[ -z $temp_dir ]] || options+=(--temp-dir "$temp_dir")
  local head_options=()
  [[ -z $ip ]] || head_options+=(--ip "$ip")
  $dashboard || head_options+=(--no-dashboard)
  output=$(on "$head" head "${options[@]}" ${head_options[@]+"${head_options[@]}"} -- ${ray_options[@]+"${ray_options[@]}"})
  address=$(sed -n 's/^RAY_ADDRESS=//p' <<<"$output")
  for host in "$@"; do
    on "$host" worker "$address" "${options[@]}" -- ${ray_options[@]+"${ray_options[@]}"} ||
      die "$host did not join; the others run: fix it and run worker there, or stop all: cluster/start.sh down $head $*"
  done
  echo "RAY_ADDRESS=$address"
}

down() {
  local head=$1 host failed=0
  shift
  for host in "$@" "$head"; do on "$host" stop --port "$port" || failed=1; done
  return $failed
}

# Runs a command of this file on a machine. The token goes through the pipe, so that no process list shows it.
on() {
  local host=$1 token=${RAY_AUTH_TOKEN:-}
  shift
  [[ -n $token ]] || ! have_token || token=$(<"${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}")
  { printf 'given_token=%q\n' "$token"; cat -- "${BASH_SOURCE[0]}"; } | ssh -o BatchMode=yes "$host" bash -s -- "$(printf '%q ' "$@")"
}

main "$@"
