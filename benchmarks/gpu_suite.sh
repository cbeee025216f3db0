#!/usr/bin/env bash
# Builds, checks and times the CUDA library on a machine with a GPU, in at most nine minutes.
#
#     benchmarks/gpu_suite.sh OUT [--dry-run]
#
# Needs a CUDA build of torch with numpy, safetensors and tqdm, nvcc, cmake, ninja,
# scikit-build-core, pybind11, pip and pytest; compute-sanitizer for the last of its parts. Nothing
# is downloaded. A short table comes last; OUT/gpu_suite.json has the numbers, OUT/gpu_suite.log
# what each part wrote.
#
# A part that has ended, well or not, is not run again by a second call with the same sources; one
# that ran out of time is, and timings go on with what was left out. Those under compute-sanitizer
# have what time the others leave: to run out of it is no failure of theirs. --dry-run takes every
# part on the CPU, in small and with ten times the time. PYTHON names the interpreter,
# SDA_FAST_GPU_SECONDS the time of all parts.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out= dry=
for argument in "$@"; do
  case $argument in
    --dry-run) dry=1 ;;
    -*) echo "gpu_suite.sh: unknown option $argument" >&2; exit 2 ;;
    *) out=$argument ;;
  esac
done
[ -n "$out" ] || { echo "usage: benchmarks/gpu_suite.sh OUT [--dry-run]" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2

python=${PYTHON:-python3}
patience=${dry:+10}; patience=${patience:-1}
seconds=$((patience * ${SDA_FAST_GPU_SECONDS:-525}))
device=${dry:+cpu}; device=${device:-cuda}
late="out of time"
command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin

# What is done is kept beside the build, by a fingerprint of the sources.
work=$root/build/gpu_suite${dry:+_dry}
fingerprint=$(cd "$root" && find csrc sda_fast python_tests benchmarks CMakeLists.txt pyproject.toml \
  -type f -regex '.*\.\(cu\|cpp\|h\|py\|sh\|toml\|txt\|safetensors\)' -print0 | sort -z |
  xargs -0 sha256sum | sha256sum | cut -c1-12)
state=$work/$fingerprint
mkdir -p "$state"
site=$state/site
export PYTHONPATH=$site:$root PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
[ -z "$dry" ] || export OMP_NUM_THREADS=1
cd "$work"  # not the root: its sources are not what is tested

# part NAME SECONDS COMMAND...: runs a part within its time and what is left of all.
part() {
  local name=$1 limit=$((patience * $2)) log=$state/$1.log
  local began=$SECONDS left=$((seconds - SECONDS)) code
  shift 2
  if [ -f "$state/$name.status" ] && ! grep -q 'out of time' "$state/$name.status"; then
    echo "== $name: done before"; return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "$late, not begun" > "$state/$name.status"; : > "$log"
    echo "== $name: no time left"; return
  fi
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$log" 2>&1
  code=$?
  case $code in
    0) echo "ok, $((SECONDS - began)) s" ;;
    124|137) echo "$late, $((SECONDS - began)) s" ;;
    *) echo "failed ($code), $((SECONDS - began)) s" ;;
  esac > "$state/$name.status"
  cat "$state/$name.status"
  grep -q '^ok' "$state/$name.status" || tail -n 15 "$log"
}

skip() { echo "skipped: $2" > "$state/$1.status"; : > "$state/$1.log"; echo "== $1: $2"; }

build() {
  local options=(-C "cmake.define.SDA_FAST_CUDA=${SDA_FAST_CUDA:-$([ -n "$dry" ] && echo OFF || echo ON)}")
  if [ -z "$dry" ]; then
    local capability
    capability=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") ||
      return 1
    options+=(-C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$capability")
  fi
  "$python" -m pip install -v --no-build-isolation --no-deps --no-index --upgrade \
    --target "$site" -C "build-dir=$work/cmake" "${options[@]}" "$root" &&
    "$python" -m sda_fast info
}

# The tests, without a plugin or a cache of pytest's, of the files that have any: others need more
# than there may be here. Where there is no GPU none is selected, which pytest calls 5.
tests() {
  "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -m cuda -q \
    --continue-on-collection-errors "$@"
  local code=$?
  [ -n "$dry" ] && [ $code -eq 5 ] && return 0
  return $code
}

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
sanitized() {
  local tool=$1
  shift
  if [ -n "$dry" ]; then "$@"; return; fi
  # every allocation its own, so that one kernel's overrun is not another tensor's memory
  local -x PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local options=(--tool "$tool" --target-processes all --report-api-errors no)
  if [ "$tool" = initcheck ]; then  # the tool is to see what other kernels write, too
    initialised "$sanitizer" "${options[@]}" --print-limit 0 --show-backtrace no "$@"
  else
    "$sanitizer" "${options[@]}" --error-exitcode 99 --kernel-name kns=sda_fast --print-limit 20 "$@"
  fi
}

# Runs initcheck, and judges what it reports of this library's kernels.
initialised() (
  set -o pipefail
  "$@" 2>&1 | awk '{ print } /^=+ +at .*sda_fast/ { bad = 1 } END { exit bad ? 99 : 0 }'
)

export -f build tests sanitized initialised
export python site work root dry sanitizer

part build 170 bash -c build
if ! grep -q '^ok' "$state/build.status"; then
  cp "$state/build.log" "$out/gpu_suite.log"; echo "the build failed"; exit 1
fi
part floors 45 bash -c "$python -m benchmarks.probe --device $device ${dry:+--quick} > $state/floors.json"
part check 60 "$python" -m benchmarks.gpu.check --device "$device"
mapfile -t files < <(grep -l 'mark\.cuda' "$root"/python_tests/test_*.py)
part tests 80 bash -c 'tests "$@"' tests "${files[@]}"
late="ok so far, out of time"
part timings 110 "$python" -m benchmarks.gpu.timing --device "$device" --seconds $((patience * 90)) --out "$state/timings.json"
late="out of time"
part profile 25 "$python" -m benchmarks.gpu.profile --device "$device" --out "$state/profile.json"
late="skipped: out of time"
for tool in memcheck racecheck initcheck synccheck; do
  if [ -z "$dry$sanitizer" ]; then
    skip $tool "compute-sanitizer is not installed"
  else
    part $tool 180 bash -c 'sanitized "$@"' sanitized $tool "$python" -m benchmarks.gpu.check --device "$device"
  fi
done
if [ -n "$dry$sanitizer" ]; then  # with what time is left, the tests too
  part memcheck-tests 120 bash -c 'sanitized memcheck bash -c "tests \$0 -x" "$0"' "$root/python_tests/test_emulate.py"
fi

cp "$state"/*.json "$out"  # whatever becomes of the table
"$python" -m benchmarks.gpu.table "$state" "$out/gpu_suite.json" | tee "$state/table.txt"
for log in "$state"/*.log "$state/table.txt"; do
  echo "==== $(basename "$log")"; cat "$log"
done > "$out/gpu_suite.log"

unwell=$(grep -L '^\(ok\|skipped\)' "$state"/*.status)
[ -z "$unwell" ] || { echo "not well: $(basename -s .status $unwell | xargs)"; exit 1; }
