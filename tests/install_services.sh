#!/bin/sh
# Installs the Ceph RADOS gateway for the S3 tests where that is possible; says so where it is not.
if command -v radosgw >/dev/null 2>&1 && command -v ceph-osd >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing the Ceph RADOS gateway for the S3 tests"
    if apt-get update -qq >/dev/null 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            ceph-mon ceph-osd radosgw >/dev/null 2>&1; then
        exit 0
    fi
fi
echo "no Ceph RADOS gateway here: the S3 tests use moto's server, a mock"
