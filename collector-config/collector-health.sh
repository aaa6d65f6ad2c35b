#!/bin/sh
# Says whether the collector can keep what it is sent: exit status 0, or 1 with a line for each reason why it cannot.
#
#   collector-health.sh HEALTH_URL METRICS_URL FREE_MIB QUEUE_DIRECTORY ARCHIVE_DIRECTORY
#
# The collector's own endpoint answers 200 as long as its receivers listen, also when a disk is full and every sender is
# refused. So this asks for more: both file systems have FREE_MIB free, no queue of records is nine tenths full, and the
# queue reaches its bound before its disk is full. Spans and metrics have queues in memory, which may fill.
# Needs sh, wget, awk and df, as busybox has them.
set -u

if [ $# -ne 5 ]; then
  echo "expected HEALTH_URL METRICS_URL FREE_MIB QUEUE_DIRECTORY ARCHIVE_DIRECTORY, got $# arguments" >&2
  exit 2
fi
health_url=$1 metrics_url=$2 free_mib=$3 queue=$4 archive=$5

status=0
fail() { echo "$*"; status=1; }
get() { wget -q -T 3 -O - "$1"; }
mib() { df -Pk "$1" | awk -v field="$2" 'NR == 2 { printf "%d", $field / 1024 }'; } # of a file system: 2 all, 4 free

get "$health_url" >/dev/null || fail "no answer from $health_url"

needed_mib=0
if metrics=$(get "$metrics_url"); then
  full=$(printf '%s\n' "$metrics" | awk '
    { labels = $1; sub(/^[^{]*/, "", labels) }
    /^otelcol_exporter_queue_size[{].*data_type="logs"/ { size[labels] = $NF }
    /^otelcol_exporter_queue_capacity[{].*data_type="logs"/ { capacity[labels] = $NF }
    END {
      for (labels in capacity)
        if (size[labels] + 0 >= 0.9 * capacity[labels])
          printf "queue full: %.0f of %.0f in %s\n", size[labels], capacity[labels], labels
    }')
  [ -z "$full" ] || fail "$full"
  # Many small requests take twice and a half of their bytes in the file of the queue.
  needed_mib=$(printf '%s\n' "$metrics" | awk '
    /^otelcol_exporter_queue_capacity[{].*data_type="logs"/ { bytes += $NF }
    END { printf "%d", 2.5 * bytes / 1048576 }')
  [ "$needed_mib" -gt 0 ] || fail "no queue among the metrics at $metrics_url"
else
  fail "no answer from $metrics_url"
fi

for directory in "$queue" "$archive"; do
  free=$(mib "$directory" 4)
  if [ -z "$free" ]; then
    fail "no file system at $directory"
  elif [ "$free" -lt "$free_mib" ]; then
    fail "disk full: $free MiB free at $directory, expected $free_mib"
  fi
done
size=$(mib "$queue" 2)
if [ -n "$size" ] && [ "$size" -lt "$needed_mib" ]; then
  fail "disk too small for the bound of the queue: $size MiB at $queue, expected $needed_mib"
fi
exit $status
