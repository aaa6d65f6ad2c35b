#!/usr/bin/env bash
# Builds the verifier and prints the path of the program, and nothing else, on stdout.
#
#   verifiers/go/build.sh             build it, some seconds; at once when it was built before
#   verifiers/go/build.sh --cached    never build; exit 1 when it was not built before
#
# Needs Go. The program lies in ${XDG_CACHE_HOME:-~/.cache}/otel-audit, in a folder named after the content of the
# sources: an edit of one of them makes a new program.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

case "${1:-}" in
"" | --cached) ;;
*)
  say "expected no argument or --cached, got '$1'"
  exit 2
  ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/otel-audit
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }
key=$(cat "$here"/go.mod "$here"/go.sum "$here"/*.go | sha256)
program=$cache/verify-proof-$key/verify-proof

if [ -x "$program" ]; then
  printf '%s\n' "$program"
  exit 0
fi
if [ "${1:-}" = --cached ]; then
  say "not built yet: run $here/build.sh"
  exit 1
fi
if ! command -v go >/dev/null; then
  say "expected Go on PATH, got none: install it from https://go.dev/dl and run this again"
  exit 1
fi

mkdir -p "$(dirname "$program")"
work=$(mktemp -d "$cache/building-XXXXXX")
trap 'rm -rf "$work"' EXIT

say "building verify-proof"
(cd "$here" && CGO_ENABLED=0 GOWORK=off go build -mod=readonly -trimpath -buildvcs=false -o "$work/verify-proof" .) >&2
# A rename within one file system: two builds at once both end with a whole program.
mv -f "$work/verify-proof" "$program"
printf '%s\n' "$program"
