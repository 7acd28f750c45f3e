#!/bin/sh
# Makes the release tarballs: sh dist/pack.sh OUT, from the top of a checkout, with VERSION in the
# environment (`make dist` does both). Equal sources and an equal Go make equal bytes: names are sorted, owners are
# numeric zeros, and every time is the commit's (SOURCE_DATE_EPOCH, or 1 January 2000 without git).
set -eu

out=${1:?"say where to: sh dist/pack.sh bin/dist"}
: "${VERSION:?"say which, or use make dist"}"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 946684800)}

rm -rf "$out"
mkdir -p "$out"
for arch in amd64 arm64; do
	name=tenderbox_${VERSION#v}_linux_$arch
	stage=$out/$name
	mkdir "$stage"
	GOOS=linux GOARCH=$arch make -s build "VERSION=$VERSION" "BIN=$stage/tenderbox"
	cp dist/install.sh dist/tenderbox.service dist/tenderbox.toml "$stage/"
	for page in README.md CHANGELOG.md; do
		[ ! -f "$page" ] || cp "$page" "$stage/"
	done
	chmod 0755 "$stage/tenderbox" "$stage/install.sh"
	tar -C "$out" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --mode='go-w,a+rX' \
		--format=ustar -cf - "$name" | gzip -9n >"$out/$name.tar.gz"
	rm -rf "$stage"
done
(cd "$out" && sha256sum -- *.tar.gz >SHA256SUMS && cat SHA256SUMS)
