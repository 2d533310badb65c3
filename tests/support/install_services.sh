#!/bin/sh
# Installs the servers and the browser that tests use where that is possible; says so where it is
# not: without the Ceph gateway the S3 tests use a mock, without the others their tests are skipped.
update_done=
install() {  # what the tests do without it, the packages
    instead=$1
    shift
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $* for the tests"
        if [ -z "$update_done" ]; then
            apt-get update -qq >/dev/null 2>&1
            update_done=yes
        fi
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
            >/dev/null 2>&1 && return
    fi
    echo "$* cannot be installed here: $instead"
}

{ command -v radosgw && command -v ceph-osd; } >/dev/null 2>&1 ||
    install "the S3 tests use moto's server, a mock" ceph-mon ceph-osd radosgw
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ||
    install "the tests of MLflow on PostgreSQL are skipped" postgresql
command -v chromium >/dev/null 2>&1 ||
    install "the test of MLflow's pages in a browser is skipped" chromium
