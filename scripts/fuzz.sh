#!/bin/sh
# Runs every fuzz test below the current folder for FUZZTIME (10s), one after the other; the first finding ends it, and
# Go has then written the input to the package's testdata/fuzz, to be committed with the fix.
set -eu
go=${GO:-go}
time=${FUZZTIME:-10s}

find . -name '*_test.go' -not -path '*/testdata/*' | sort | while read -r file; do
	package=$(dirname "$file")
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r target; do
		echo "== $package $target, $time"
		(cd "$package" && "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" . </dev/null) || exit 1
	done || exit 1
done
