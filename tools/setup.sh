#!/bin/sh
# Makes the machine ready: Debian packages that are missing, then a virtual environment with bpfchain.
# usage: tools/setup.sh demo|test|bench    (each adds to the one before)
set -eu
cd "$(dirname "$0")/.."
level=${1:-demo}

# cmake, libclang1, gcc: the emulator's native part is built from source (uBPF, bindgen)
packages="python3 python3-venv libbpf1 g++ libc6-dev cmake make libclang1-14"
[ "$level" = demo ] || packages="$packages clang llvm bpftool iproute2 libbpf-dev libelf-dev zlib1g-dev \
 linux-libc-dev debian-archive-keyring xz-utils chromium fonts-dejavu-core lcov iperf3 strace xdp-tools"
[ "$level" != bench ] || packages="$packages qemu-system-x86 cpio"

# Rust 1.85 or newer; Debian 12's is older, its cargo-web is not
rust_is_new() {
    version=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    [ -n "$version" ] && [ "${version% *}" -ge 1 ] && [ "${version#* }" -ge 85 ]
}
lints_rust() { cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; }
if ! rust_is_new || { [ "$level" != demo ] && ! lints_rust; }; then
    packages="$packages cargo-web rustc-web"
    [ "$level" = demo ] || packages="$packages rust-web-clippy rustfmt-web"
fi

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
wanted=$( (cat pyproject.toml setup.py tools/*.txt tools/setup.sh tools/build_backend.py
    find emulator/native -name target -prune -o -type f -print0 | sort -z | xargs -0 cat) | sha256sum)
ls emulator/bpfchain/emulator/_ubpf*.so >/dev/null 2>&1 || [ -n "${BPFCHAIN_NO_NATIVE:-}" ] || rm -f "$stamp"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: Python packages and the emulator's native part ($level)" >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1' -c tools/constraints.txt
    group=; [ "$level" = demo ] || group="--group dev"
    # shellcheck disable=SC2086
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install -q --disable-pip-version-check \
        -c tools/constraints.txt -e . $group
    printf %s "$wanted" > "$stamp"
fi
