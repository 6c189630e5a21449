# The reaper of one stack: waits until standard input closes, which happens when
# the process that owns the stack ends in whatever way, then kills the servers
# that are left and removes the folder. After an orderly Close nothing is left to
# do.
#
#   $1     the stack's folder
#   $2...  the programs whose processes may be killed
#
# A process is the stack's when its working folder lies in the stack's folder and
# it runs one of the programs. Process ids are never remembered, so a reused one
# cannot be hit.
trap '' HUP INT QUIT TERM
cd /
folder=$1
shift
case $folder in
/*/freshet-stack-*) ;;
*) exit 2 ;;
esac

# From here on it can be relied on.
echo ready
exec >/dev/null 2>&1
read -r _

# Prints the ids of the stack's processes.
servers() {
	if [ -d /proc/self/cwd ]; then
		for process in /proc/[0-9]*; do
			cwd=$(readlink "$process/cwd") || continue
			case $cwd in
			"$folder" | "$folder"/*) ;;
			*) continue ;;
			esac
			exe=$(readlink "$process/exe") || continue
			for program; do
				# A program that was upgraded meanwhile shows as "... (deleted)".
				case $exe in
				"$program" | "$program "*) echo "${process#/proc/}" ;;
				esac
			done
		done
	elif command -v lsof >/dev/null; then
		lsof -t -a -d cwd -c redis -c postgres -c initdb -c pg_basebackup +D "$folder"
	fi
}

round=0
while [ "$round" -lt 100 ]; do
	found=$(servers "$@")
	if [ -z "$found" ]; then
		# Postgres, when killed, leaves a small segment of System V shared
		# memory, named in line 7 of its lock file as "key id".
		for lock in "$folder"/postgres*/data/postmaster.pid; do
			[ -f "$lock" ] || continue
			id=$(sed -n '7s/^ *[0-9]* *\([0-9][0-9]*\) *$/\1/p' "$lock")
			[ -z "$id" ] || ipcrm -m "$id"
		done
		rm -rf -- "$folder"
		[ -e "$folder" ] || exit 0
	else
		# shellcheck disable=SC2086 # one word per process
		kill -9 $found
	fi
	sleep 0.1
	round=$((round + 1))
done
exit 1
