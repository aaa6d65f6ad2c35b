#!/usr/bin/env bash
# Builds the collector of builder.yaml and prints the path of the binary, and nothing else, on stdout.
#
#   otelcol=$(./build-collector.sh)             build it, about two minutes; at once when it was built before
#   otelcol=$(./build-collector.sh --cached)    never build; exit 1 when it was not built before
#
# Needs Go 1.26 or newer. The binary lies in ${XDG_CACHE_HOME:-~/.cache}/otel-audit, in a folder named after the
# content of builder.yaml, of this script and the Go version: an edit of one of them makes a new binary.
set -euo pipefail

builder_version=v0.165.0

say() { printf '%s\n' "$*" >&2; }

case "${1:-}" in
"" | --cached) ;;
*)
  say "expected no argument or --cached, got '$1'"
  exit 2
  ;;
esac

if ! command -v go >/dev/null; then
  say "expected Go 1.26 or newer on PATH, got none: install it from https://go.dev/dl and run this again"
  exit 1
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/otel-audit

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

key=$({ cat "$here/builder.yaml" "${BASH_SOURCE[0]}" && go version; } | sha256)
folder=$cache/collector-$key
binary=$folder/otelcol-audit

if [ -x "$binary" ]; then
  printf '%s\n' "$binary"
  exit 0
fi
if [ "${1:-}" = --cached ]; then
  say "not built yet: run $here/build-collector.sh"
  exit 1
fi

mkdir -p "$cache"
# Without the lock two runs at once would each compile for minutes. Where flock is missing they do, and the rename
# below keeps the result whole.
if command -v flock >/dev/null; then
  exec 9>"$folder.lock"
  flock 9
  if [ -x "$binary" ]; then
    printf '%s\n' "$binary"
    exit 0
  fi
fi

work=$(mktemp -d "$cache/building-XXXXXX")
trap 'rm -rf "$work"' EXIT

builder=$cache/builder-$builder_version/builder
if [ ! -x "$builder" ]; then
  say "installing the collector builder $builder_version"
  GOBIN=$work/bin go install "go.opentelemetry.io/collector/cmd/builder@$builder_version" >&2
  mkdir -p "$(dirname "$builder")"
  mv -f "$work/bin/builder" "$builder"
fi

say "building the collector, about two minutes"
cp "$here/builder.yaml" "$work/"
# The lock is not for the children: one that outlives this script would keep it.
(cd "$work" && CGO_ENABLED=0 GOWORK=off "$builder" --config builder.yaml 9>&-) >&2

# A rename within one file system: whoever looks sees no binary or a whole one.
mkdir -p "$folder"
mv -f "$work/build/otelcol-audit" "$binary"
say "built"
printf '%s\n' "$binary"
