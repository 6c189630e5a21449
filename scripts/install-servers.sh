#!/bin/sh
# Installs the servers that Freshet's tests and `freshet up` run as child
# processes: redis-server 6 or newer and Postgres 13 or newer. Does nothing when
# they are there. Debian and Ubuntu: with apt-get, as root or through sudo. macOS:
# with Homebrew. Elsewhere it says what is missing.
#
# System services are neither started nor stopped, and a server that comes with a
# package does not become one. On Debian and Ubuntu, packages of servers start
# them, and Postgres's creates a database cluster; so, while apt-get runs,
#   - /usr/sbin/policy-rc.d, where Debian's tools ask whether they may start or
#     stop a service, says no. When the machine has such a file already, its
#     administrator has decided, and it is left as it is.
#   - a file in /etc/postgresql-common/createcluster.d says that no cluster is to
#     be created.
#   - needrestart, which on Ubuntu restarts services after an installation, is
#     suspended.
# Both files are removed afterwards, however this script ends; after a SIGKILL,
# by its next run. Lastly, a redis-server that this script has installed is not
# started at the next boot (`systemctl enable redis-server` changes that); one
# that was there before is not touched.
set -eu

policy=/usr/sbin/policy-rc.d
cluster_dir=/etc/postgresql-common/createcluster.d
cluster_conf=$cluster_dir/freshet-install.conf
marker='# Temporary, by install-servers.sh of Freshet: remove it when that does not run.'

say() { printf 'install-servers: %s\n' "$*" >&2; }

# at_least MINIMUM TEXT: the first number in the text is MINIMUM or more.
at_least() {
	number=$(printf '%s\n' "$2" | sed -n '1s/^[^0-9]*\([0-9][0-9]*\).*/\1/p')
	[ "${number:-0}" -ge "$1" ]
}

have_redis() {
	command -v redis-server >/dev/null 2>&1 || return 1
	at_least 6 "$(redis-server --version 2>/dev/null)"
}

# The folders are those in which internal/devstack looks.
have_postgres() {
	in_path=$(command -v initdb 2>/dev/null || :)
	for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
		/opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin "${in_path%/initdb}"; do
		if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] &&
			at_least 13 "$("$folder/postgres" --version 2>/dev/null)"; then
			return 0
		fi
	done
	return 1
}

# Sets missing to the parts that are not there, each as its package is called.
look() { # look REDIS_PACKAGE POSTGRES_PACKAGE
	missing=
	have_redis || missing=$1
	have_postgres || missing="$missing${missing:+ }$2"
}

# The part that runs as root: apt PACKAGE...
apt() {
	own_policy=false
	own_cluster_dir=false
	trap clean_up EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	if [ ! -e "$policy" ] || grep -qF "$marker" "$policy"; then
		own_policy=true
		printf '#!/bin/sh\n%s\nexit 101\n' "$marker" >"$policy"
		chmod 755 "$policy"
	else
		say "leaving $policy as it is: it decides whether the new services start"
	fi
	if [ ! -d "$cluster_dir" ]; then
		own_cluster_dir=true
		mkdir -p "$cluster_dir"
	fi
	printf '%s\ncreate_main_cluster = false\n' "$marker" >"$cluster_conf"

	redis_before=false
	[ ! -e /etc/init.d/redis-server ] || redis_before=true

	export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
	# A fresh machine has no package lists at all; a machine without network may
	# have some that do.
	apt-get -q -o DPkg::Lock::Timeout=300 update || say 'apt-get update failed; trying with the package lists there are'
	apt-get -q -y -o DPkg::Lock::Timeout=300 \
		-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
		install --no-install-recommends "$@"

	if [ "$redis_before" = false ] && [ -e /etc/init.d/redis-server ]; then
		if command -v systemctl >/dev/null 2>&1; then
			systemctl --quiet disable redis-server.service
		else
			update-rc.d redis-server disable
		fi || say 'could not keep redis-server from starting at boot'
	fi
}

clean_up() {
	rm -f "$cluster_conf"
	if [ "$own_cluster_dir" = true ]; then
		# The package may have put files of its own there by now.
		rmdir "$cluster_dir" 2>/dev/null || :
		rmdir "${cluster_dir%/*}" 2>/dev/null || :
	fi
	[ "$own_policy" = false ] || rm -f "$policy"
}

if [ "${1:-}" = apt ]; then
	shift
	apt "$@"
	exit
fi

case $(uname -s) in
Darwin)
	look redis postgresql@16
	[ -n "$missing" ] || exit 0
	if ! command -v brew >/dev/null 2>&1; then
		say "missing: $missing. Install Homebrew (https://brew.sh), then run: brew install $missing"
		exit 1
	fi
	say "installing with Homebrew: $missing"
	# shellcheck disable=SC2086 # one word per package
	brew install $missing
	look redis postgresql@16
	;;
*)
	look redis-server postgresql
	[ -n "$missing" ] || exit 0
	if ! command -v apt-get >/dev/null 2>&1; then
		say "missing: $missing (redis-server 6 or newer, Postgres 13 or newer with initdb)." \
			"Install them with your system's package manager; this script knows only apt-get and brew."
		exit 1
	fi
	say "installing with apt-get: $missing"
	if [ "$(id -u)" -eq 0 ]; then
		# shellcheck disable=SC2086 # one word per package
		sh "$0" apt $missing
	elif command -v sudo >/dev/null 2>&1; then
		# shellcheck disable=SC2086 # one word per package
		sudo sh "$0" apt $missing || {
			say "that takes root's rights. Have somebody run: apt-get install $missing"
			exit 1
		}
	else
		say "that takes root's rights, and there is no sudo. As root, run: apt-get install $missing"
		exit 1
	fi
	look redis-server postgresql
	;;
esac

if [ -n "$missing" ]; then
	say "installed, but still missing or too old: $missing." \
		"Newer packages are at https://redis.io/downloads and https://www.postgresql.org/download."
	exit 1
fi
