#!/bin/bash
# Runs COMMAND as on a host of its own: in a network that has ADDRESS, with a Python environment at
# /srv that holds PACKAGES and no other, with FOLDER at /media; /tmp and CLONE are empty.
# usage: unshare --net --mount --pid --fork worker.sh ADDRESS PYTHON "PACKAGES" FOLDER CLONE COMMAND...
set -e
address=$1 python=$2 packages=$3 folder=$4 clone=$5
shift 5
installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mount --make-rprivate /
mount --bind "$folder" /media
mount -t tmpfs none /srv
"$python" -m venv --without-pip /srv
environment=$(/srv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for package in $packages; do
  if test -d "$installed/$package"; then mkdir "$environment/$package"; else touch "$environment/$package"; fi
  mount --bind "$installed/$package" "$environment/$package"
  mount -o remount,ro,bind "$environment/$package"
done
mount -t tmpfs none /tmp
test ! -d "$clone" || mount -t tmpfs none "$clone"
cd /media
ip link set lo up
until ip link set eth0 up 2> /dev/null; do sleep 0.1; done
ip address add "$address" dev eth0
export PATH="/srv/bin:$PATH" HOME=/media SPARK_HOME="$environment/pyspark"
exec "$SPARK_HOME/bin/spark-class" "$@"
