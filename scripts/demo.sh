#!/usr/bin/env bash
# Sets up, then runs the whole line: data, teacher, spatial and temporal distillation, export, stream, benchmark, page.
#   bash scripts/demo.sh                    on the procedural street world
#   bash scripts/demo.sh --data FOLDER      on frames and label maps of your own
set -euo pipefail
here="$PWD"
arguments=()
previous=""
for argument in "$@"; do # paths are meant from where the command was typed
    case "$previous" in
        --data | --out) [ "${argument#/}" != "$argument" ] || argument="$here/$argument" ;;
    esac
    arguments+=("$argument")
    previous="$argument"
done
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec fastv2v demo "${arguments[@]}"
