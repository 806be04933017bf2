#!/bin/sh
# A tape system with a client, for tests: tape_system.sh ROOT put SOURCE KEY | get KEY TARGET | stat KEY | checksum KEY | list
#
# ROOT/objects holds what is kept, ROOT/polls how often each object is still to be asked for before it is on tape.
# ROOT/faults/COMMAND holds a fault and how often it strikes: `hang 1`, `exit-75 2`, `garbage 1`, `killed 1`, `wrong 1`,
# `orphan 1`, `loud 1`, `half 1`.
# ROOT/blind holds for how many looks nothing is known of an object after it was put.
set -eu
root=$1 command=$2
shift 2

fault=none
if [ -f "$root/faults/$command" ]; then
    read -r kind left <"$root/faults/$command"
    if [ "$left" -gt 1 ]; then echo "$kind $((left - 1))" >"$root/faults/$command"; else rm "$root/faults/$command"; fi
    fault=$kind
fi
echo "$command $*" >>"$root/log"

case $fault in
hang)
    sleep 600 &
    echo $! >>"$root/pids"
    wait
    ;;
orphan)
    sleep 600 &
    echo $! >>"$root/pids"
    ;;
exit-*)
    echo "the robot is stuck" >&2
    exit "${fault#exit-}"
    ;;
garbage)
    echo '<html>502 Bad Gateway</html>'
    exit 0
    ;;
killed) kill -KILL $$ ;;
loud) head -c 10000000 /dev/zero | tr '\0' 'x' >&2 ;;
esac

case $command in
put)
    at=$root/objects/$2
    if [ -e "$at" ]; then
        echo "$2 exists" >&2
        exit 73
    fi
    mkdir -p "${at%/*}" "$root/polls/${2%/*}"
    if [ "$fault" = half ]; then
        head -c $(($(stat -c %s "$1") / 2)) "$1" >"$at"
        echo 0 >"$root/polls/$2"
        kill -KILL $$
    fi
    cp -- "$1" "$at.new"
    if [ "$fault" = wrong ]; then printf 'X' | dd of="$at.new" bs=1 seek=1 conv=notrunc 2>/dev/null; fi
    chmod 600 "$at.new"
    mv -- "$at.new" "$at"
    echo 3 >"$root/polls/$2"
    if [ -f "$root/blind" ]; then cp -- "$root/blind" "$root/polls/$2.blind"; fi
    ;;
get)
    cp -- "$root/objects/$1" "$2"
    if [ "$fault" = wrong ]; then printf 'X' | dd of="$2" bs=1 seek=1 conv=notrunc 2>/dev/null; fi
    ;;
stat)
    if [ ! -e "$root/objects/$1" ]; then
        echo missing
        exit 0
    fi
    if [ -f "$root/polls/$1.blind" ]; then
        read -r left <"$root/polls/$1.blind"
        if [ "$left" -gt 1 ]; then echo $((left - 1)) >"$root/polls/$1.blind"; else rm "$root/polls/$1.blind"; fi
        echo missing
        exit 0
    fi
    read -r left <"$root/polls/$1"
    case $left in
    0) echo "on_tape VOL001" ;;
    1) echo staging ;;
    *) echo on_disk ;;
    esac
    if [ "$left" -gt 0 ] && [ ! -e "$root/stuck" ]; then echo $((left - 1)) >"$root/polls/$1"; fi
    ;;
checksum) sha256sum <"$root/objects/$1" ;;
list) cd "$root/objects" && find . -type f | sed 's|^\./||' ;;
*) exit 64 ;;
esac
