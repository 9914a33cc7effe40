#!/usr/bin/env bash
# Runs the tests in the oldest versions that pyproject.toml admits (constraints-oldest.txt), in an environment of its
# own.
#
#     scripts/oldest_versions.sh            (make oldest; half an hour on two cores)
#     scripts/oldest_versions.sh -k scaling tests/models          what follows goes to pytest, and replaces both groups
#
# PYTHON picks the interpreter (3.11 or 3.12; the default is the first found, 3.12 before 3.11), TORCH another build of
# the same torch.
# The environment is build/oldest/pythonX.Y; it is made once and again when the constraints or pyproject.toml change.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [ -z "$python" ]; then
  for python in python3.12 python3.11 python3 none; do
    # A name that a version manager left behind may exist and not run, hence the trial.
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2> /dev/null; then
      break
    fi
  done
fi
if [ "$python" = none ]; then
  echo "harpe needs Python 3.11 or 3.12 with its venv module, and found none. Name one: PYTHON=/path/to/python3 $0" >&2
  exit 1
fi

folder=build/oldest/python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ pyproject.toml -nt "$folder/.installed" ] || [ constraints-oldest.txt -nt "$folder/.installed" ]; then
  rm -rf "$folder"
  "$python" -m venv "$folder"
  # torch goes first and alone, as in the Makefile: TORCH may carry options which only torch is to see.
  # shellcheck disable=SC2086
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps ${TORCH:-$(grep '^torch==' constraints-oldest.txt)}
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
  touch "$folder/.installed"
fi
"$folder/bin/python" -m pip check
"$folder/bin/python" -VV
"$folder/bin/python" -m pip list --format freeze --disable-pip-version-check | grep -E '^(torch|transformers|accelerate)=='

if [ $# -gt 0 ]; then
  exec "$folder/bin/python" -m pytest "$@"
fi
export OMP_NUM_THREADS=1
status=0  # both groups run, whatever the first one says
"$folder/bin/python" -m pytest -n 2 --dist worksteal || status=$?
"$folder/bin/python" -m pytest -n 2 --dist worksteal -m slow || status=$?
exit $status
