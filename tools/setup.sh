#!/bin/sh
# Makes the machine ready: Debian packages that are missing, then a virtual environment with bpfchain.
# usage: tools/setup.sh demo|test|bench    (each adds to the one before)
set -eu
cd "$(dirname "$0")/.."
level=${1:-demo}

packages="python3 python3-venv libbpf1"
[ "$level" = demo ] || packages="$packages clang llvm bpftool iproute2 libbpf-dev libelf-dev zlib1g-dev \
 gcc libc6-dev linux-libc-dev make debian-archive-keyring xz-utils"
[ "$level" != bench ] || packages="$packages qemu-system-x86 cpio"

missing=
for package in $packages; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
        installed) ;;
        *) missing="$missing $package" ;;
    esac
done
# a Python of another kind (pyenv, conda) does as well as Debian's
if python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    missing=$(echo " $missing " | sed 's/ python3 / /; s/ python3-venv / /')
fi
if [ -n "$(echo "$missing" | tr -d ' ')" ]; then
    echo "setup: installing Debian packages:$missing" >&2
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# an environment that moved with its folder is made anew
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    rm -rf .venv
    python3 -m venv .venv
fi
stamp=.venv/.setup-$level
wanted=$(cat pyproject.toml tools/constraints.txt tools/setup.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: Python packages ($level)" >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1' -c tools/constraints.txt
    group=; [ "$level" = demo ] || group="--group dev"
    # shellcheck disable=SC2086
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install -q --disable-pip-version-check \
        -c tools/constraints.txt -e . $group
    printf %s "$wanted" > "$stamp"
fi
