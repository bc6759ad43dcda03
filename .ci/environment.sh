#!/bin/sh
# Makes .venv hold this checkout with the given extras:  sh .ci/environment.sh plan,dev
# Runs in a second when nothing changed: a stamp in .venv remembers what was installed from which files.
# ECHELON_PYTHON names the interpreter to use. Everything goes to stderr.
set -eu
cd "$(dirname "$0")/.."
exec 1>&2
extras=$1
venv=.venv

usable='import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)'
creates='import ensurepip, venv'

fail() {
    echo "error[environment]: $1"
    echo
    echo "hint: $2"
    exit 1
}

# The newest Python that the pinned packages have wheels for comes first; a still newer one is the last resort.
choose_python() {
    incomplete=""
    for name in ${ECHELON_PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
        path=$(command -v "$name" 2>/dev/null) || continue
        "$path" -c "$usable" 2>/dev/null || continue
        if "$path" -c "$creates" 2>/dev/null; then
            echo "$path"
            return 0
        fi
        incomplete="$incomplete $path"
    done
    if [ -n "$incomplete" ]; then
        fail "found$incomplete, but without the modules venv and ensurepip that make environments" \
            "install them (Debian, Ubuntu: apt-get install python3-venv), or name another interpreter: ECHELON_PYTHON=/path/to/python make ..."
    fi
    fail "no Python 3.11 or newer found (looked for ${ECHELON_PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python} on PATH)" \
        "install Python 3.11 or newer, or name it: ECHELON_PYTHON=/path/to/python make ..."
}

if [ -e $venv ] && ! $venv/bin/python -c "$usable" 2>/dev/null; then
    fail "$venv exists but holds no working Python 3.11 or newer" "remove it: rm -r $venv"
fi
if [ ! -e $venv ]; then
    # A fault inside $(...) must stop the script, hence the two steps: dash does not do it for 'local' or nested calls.
    python=$(choose_python 2>&1) || { echo "$python"; exit 1; }
    echo "creating $venv with $python"
    "$python" -m venv $venv
fi

# The folder is part of the stamp: an environment copied elsewhere still points at the old tree.
stamp="$(cat pyproject.toml constraints.txt | cksum | tr -d ' ')-$(pwd | cksum | tr -d ' ')"
for have in "$venv"/.echelon-"$stamp"-*; do
    [ -e "$have" ] || continue
    case ",${have##*-}," in *",$extras,"*) exit 0 ;; esac
done
echo "installing echelon[$extras] into $venv"
$venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$extras]"
: > "$venv/.echelon-$stamp-$extras"
