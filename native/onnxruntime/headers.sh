#!/usr/bin/env bash
# Prints a folder that holds ONNX Runtime's C++ headers, for the compiler's -I.
#
#   headers.sh [BUILD_FOLDER]      default: build/ at the top of the checkout
#
# Looks at, in this order:
#   1. ORT_INCLUDE_DIR, where it is set;
#   2. the system's libonnxruntime-dev;
#   3. what an earlier run unpacked into the build folder;
#   4. Debian's libonnxruntime-dev, downloaded and unpacked into the build folder. Its signature is checked
#      against the system's Debian keyring. Needs no root, and writes nothing outside the build folder.
# Where none works it says why on stderr and exits with 1: the caller goes on without the native ops.
set -euo pipefail

readonly header=onnxruntime_cxx_api.h
readonly package=libonnxruntime-dev
# The first release that has the package. A library built against its headers runs in later runtimes too.
readonly release=trixie
readonly mirror=${TOKENFOLD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# Longest time to go without an answer, and for each of the two downloads in all; seconds.
readonly silence=10 patience=60

fail() {
    echo "headers.sh: $*" >&2
    echo "headers.sh: set ORT_INCLUDE_DIR to the folder of $header, or install $package" >&2
    exit 1
}

# The folder of the header at or below any of some folders, as an absolute path; false where there is none.
folder_of_header() {
    local found
    found=$(find -H "$@" -name "$header" -print -quit 2>/dev/null) || true
    [[ -n $found ]] && realpath "$(dirname "$found")"
}

if [[ -n ${ORT_INCLUDE_DIR:-} ]]; then
    folder_of_header "$ORT_INCLUDE_DIR" || fail "ORT_INCLUDE_DIR=$ORT_INCLUDE_DIR holds no $header"
    exit
fi

folder_of_header /usr/include /usr/local/include && exit

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
build=$(realpath -m "${1:-$top/build}")
unpacked=$build/onnxruntime-headers
folder_of_header "$unpacked" && exit

for tool in apt-get dpkg dpkg-deb timeout; do
    command -v "$tool" >/dev/null || fail "no ONNX Runtime headers, and no $tool to download them with"
done
[[ -r $keyring ]] || fail "no ONNX Runtime headers, and no $keyring to check a download with"

mkdir -p "$build"
work=$(mktemp -d "$build/.onnxruntime-headers.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,parts,unpacked}
: >"$work/status"

echo "deb [signed-by=$keyring arch=$(dpkg --print-architecture) targets=Packages] $mirror $release main" \
    >"$work/sources.list"
# On top of the system's configuration, whose proxies stay in force. Its hooks do not: they would touch the
# system's own caches. The sandbox user cannot enter every folder a checkout may lie in.
cat >"$work/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "$work/parts";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$work/parts";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::Cache "$work/cache";
Dir::Cache::Archives "$work/cache/archives";
APT::Sandbox::User "$(id -un)";
APT::Get::AllowUnauthenticated "false";
APT::Get::List-Cleanup "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "$silence";
Acquire::https::Timeout "$silence";
CONF

# Quietly, and with what went wrong last where it goes wrong.
apt() {
    (cd "$work" && timeout "$patience" apt-get -qq -c "$work/apt.conf" "$@") >"$work/log" 2>&1 || {
        tail -n 5 "$work/log" >&2
        return 1
    }
}

echo "headers.sh: downloading $package of Debian $release" >&2
# Without this option, apt-get update calls an unreachable mirror a warning and succeeds.
apt update -o APT::Update::Error-Mode=any || fail "cannot read the package list of $mirror"
apt download "$package" || fail "cannot download $package from $mirror"
dpkg-deb -x "$work/$package"_*.deb "$work/unpacked" || fail "cannot unpack $package"
folder_of_header "$work/unpacked" >/dev/null || fail "$package holds no $header"
# Renamed into place last, so that a killed run leaves nothing that looks whole. A second run at the same
# time may have been faster; its folder is as good.
mv -T "$work/unpacked" "$unpacked" 2>/dev/null || true
folder_of_header "$unpacked" || fail "$unpacked holds no $header"
