# shellcheck shell=bash
# Shared by the scripts in this folder; sourced, never run.
#
# Gives: $root (the repository), $tools (the git-ignored folder for everything that is installed),
# say, note, die, and apt_install.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck disable=SC2034 # used by the scripts that source this
tools=$root/.tools

# Progress goes to standard error, so that a script's standard output stays a result.
say() { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# apt_install WHAT PACKAGE...: installs Debian or Ubuntu packages, or says what a person must install.
apt_install() {
    local what=$1
    shift
    local as_root=()
    if ! command -v apt-get >/dev/null; then
        die "$what is missing and this machine has no apt-get. Install it by hand (on Debian: $*), then run this again."
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            die "$what is missing. As root, run: apt-get install $*"
        fi
        as_root=(sudo)
        # Without a terminal nobody can type a password: fail instead of waiting for one.
        [ -t 0 ] || as_root=(sudo -n)
    fi
    say "Installing $what (apt: $*)"
    # apt's own output matters only when it fails.
    local log
    log=$(mktemp)
    if ! {
        ${as_root[@]+"${as_root[@]}"} apt-get update &&
            ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
                apt-get install --yes --no-install-recommends "$@"
    } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "$what could not be installed. As root, run: apt-get install $*"
    fi
    rm -f "$log"
}
