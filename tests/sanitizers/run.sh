#!/bin/sh
# Runs the attention contract suite over a kernel built with AddressSanitizer and UBSan.
# Usage: tests/sanitizers/run.sh [pytest arguments]; PYTHON names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-"$root/.venv/bin/python"}
build="$root/build/sanitizers"
copy="$build/services"

# A copy of the package, so that the extension in use is left alone.
rm -rf "$copy"
mkdir -p "$build"
cp -R "$root/services" "$copy"
rm -f "$copy"/glinthawk/attention/kernel/_kernel*.so
cmake -S "$root" -B "$build/cmake" -DPython_EXECUTABLE="$python" \
  -DGLINTHAWK_SANITIZE=address,undefined \
  -DGLINTHAWK_OUTPUT="$copy/glinthawk/attention/kernel"
cmake --build "$build/cmake" --parallel 2

compiler=${CXX:-c++}
# Python's own allocations at exit are no leaks of ours.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
export PYTHONPATH="$copy"
cd "$root"
exec "$python" -m pytest tests/contract/test_attention_contract.py -q -p no:cacheprovider "$@"
