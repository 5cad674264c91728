#!/bin/sh
# Run a file of tests on a host of its own, whose processes end with it, and leave nothing: run.sh ARGUMENTS OF PYTEST
# The folder is kept where a test failed.
folder=$(mktemp -d /tmp/gyre-kubernetes-XXXXXX)
# The shell waits for every process that has lost its parent, as the first process of a host must.
unshare --net --mount --pid --fork --kill-child --mount-proc sh -c '"$@"; exit $?' sh \
  .venv/bin/pytest --verbose --basetemp="$folder/pytest" "$@"
status=$?
find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2> /dev/null
test $status -ne 0 || rm -rf "$folder"
exit $status
