#!/bin/sh
# Packs a directory. To run it as a task:
#
#   taskservice run --agent backup -- examples/backup.sh DIRECTORY ARCHIVE
#
# The script does not use the service: its output becomes the log of the task, its exit status
# becomes the outcome, and the JSON object in its last line becomes the output of the task.
set -eu

echo "Packing $1"
# tar lists each file on stderr, where progress belongs; both streams go into the log.
tar --create --gzip --verbose --verbose --file "$2" --directory "$1" . >&2
echo "Checking $2"
files=$(tar --list --file "$2" | grep -vc '/$')
echo "{\"archive\": \"$2\", \"files\": $files, \"bytes\": $(wc -c <"$2")}"
