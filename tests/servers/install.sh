#!/usr/bin/env bash
# Installs a server that only the tests need and prints the path of its binary, and nothing else, on stdout.
#
#   tests/servers/install.sh victoria-logs             install it, half a minute; at once when it was installed before
#   tests/servers/install.sh victoria-logs --cached    never install; exit 1 when it was not installed before
#
# The others are victoria-metrics, for the queries of the dashboards, and vmalert-tool, for the alerts.
# Needs Go. The binary lies in ${XDG_CACHE_HOME:-~/.cache}/otel-audit, in a folder named after its version.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

case "${1:-}" in
victoria-logs)
  module=github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs
  version=v1.52.1
  ;;
victoria-metrics | vmalert-tool)
  module=github.com/VictoriaMetrics/VictoriaMetrics/app/$1
  version=v1.151.0
  ;;
*)
  say "expected the name of a server, one of: victoria-logs, victoria-metrics, vmalert-tool; got '${1:-}'"
  exit 2
  ;;
esac
case "${2:-}" in
"" | --cached) ;;
*)
  say "expected nothing or --cached after the name, got '$2'"
  exit 2
  ;;
esac

name=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/otel-audit
binary=$cache/$name-$version/$name

if [ -x "$binary" ]; then
  printf '%s\n' "$binary"
  exit 0
fi
if [ "${2:-}" = --cached ]; then
  say "not installed yet: run $0 $name"
  exit 1
fi
if ! command -v go >/dev/null; then
  say "expected Go on PATH, got none: install it from https://go.dev/dl and run this again"
  exit 1
fi

mkdir -p "$(dirname "$binary")"
work=$(mktemp -d "$cache/installing-XXXXXX")
trap 'rm -rf "$work"' EXIT

say "installing $name $version"
GOBIN=$work CGO_ENABLED=0 GOWORK=off go install "$module@$version" >&2
# A rename within one file system: two installs at once both end with a whole binary.
mv -f "$work/$name" "$binary"
printf '%s\n' "$binary"
