#!/bin/sh
# Packs a folder. As a task, with its log and its result:
#
#   taskservice run --agent backup -- examples/backup.sh FOLDER ARCHIVE
#
# The script needs nothing of the service: what it prints becomes the log, its exit code the
# outcome, and its last line, a JSON object, the output.
set -eu

echo "Packing $1"
# tar says each file to stderr, where progress belongs; both go into the log.
tar --create --gzip --verbose --verbose --file "$2" --directory "$1" . >&2
echo "Checking $2"
files=$(tar --list --file "$2" | grep -vc '/$')
echo "{\"archive\": \"$2\", \"files\": $files, \"bytes\": $(wc -c <"$2")}"
