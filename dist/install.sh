#!/bin/sh
# Installs or upgrades Tenderbox on this machine. It copies three files, makes one system user, and
# starts nothing without asking. Data (/var/lib/tenderbox) and settings (/etc/tenderbox) are kept.
#
#   sudo ./install.sh                 from an unpacked release
#   DESTDIR=/tmp/image ./install.sh   into a folder, for packagers: no user, no systemctl
set -eu

DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$here/tenderbox}
unit=/etc/systemd/system/tenderbox.service
settings=/etc/tenderbox/tenderbox.toml

die() { echo "install.sh: $*" >&2; exit 1; }

[ -f "$binary" ] || die "no binary at $binary: unpack a release, or name one: ./install.sh bin/tenderbox"
if [ -z "$DESTDIR" ]; then
	[ "$(id -u)" = 0 ] || die "needs root to write to $PREFIX/bin and /etc: run it with sudo"
	"$binary" version >/dev/null || die "$binary does not run here: is it the release for $(uname -m)?"
fi

# put MODE SOURCE TARGET: written beside the target and renamed, so that a running box keeps its
# old file and a cut in the middle leaves the old one whole.
put() {
	mkdir -p "$DESTDIR$(dirname "$3")"
	cp "$2" "$DESTDIR$3.new"
	chmod "$1" "$DESTDIR$3.new"
	mv -f "$DESTDIR$3.new" "$DESTDIR$3"
	echo "installed $DESTDIR$3"
}

put 0755 "$binary" "$PREFIX/bin/tenderbox"

rewritten=$(mktemp)
trap 'rm -f "$rewritten"' EXIT
sed "s|/usr/local/bin/|$PREFIX/bin/|" "$here/tenderbox.service" >"$rewritten"
put 0644 "$rewritten" "$unit"

if [ -e "$DESTDIR$settings" ]; then
	echo "kept      $DESTDIR$settings"
else
	put 0640 "$here/tenderbox.toml" "$settings"
fi

[ -z "$DESTDIR" ] || exit 0

if ! id tenderbox >/dev/null 2>&1; then
	useradd --system --user-group --home-dir /var/lib/tenderbox --no-create-home --shell /usr/sbin/nologin tenderbox
	echo "made      system user tenderbox"
fi
chgrp tenderbox "$settings"

if [ ! -d /run/systemd/system ]; then
	echo "This machine does not run systemd. Start the box with: tenderbox serve --data /var/lib/tenderbox"
	exit 0
fi
systemctl daemon-reload

verb=start
if systemctl is-active --quiet tenderbox; then verb=restart; fi
answer=n
if [ -t 0 ]; then
	printf 'Tenderbox is installed. %s it now, and at every boot? [y/N] ' "$verb"
	read -r answer || answer=n
fi
case $answer in
[yY]*) systemctl enable tenderbox && systemctl "$verb" tenderbox && systemctl --no-pager --lines=3 status tenderbox ;;
*) echo "Nothing was started. When you are ready: systemctl enable tenderbox && systemctl $verb tenderbox" ;;
esac
