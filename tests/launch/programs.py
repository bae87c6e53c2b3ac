"""Stand-ins for what the launchers call, in a folder that goes to the front of PATH."""

import pathlib
import stat
import sys

# What `uv venv` makes: a python that notes how it was called and ends as `exits` in the stand-in's
# folder says, one word a start: an exit code, "late2" for one a second later, "hang" (until
# SIGTERM, then 143; "hang1": then 1), or "0@worker1=2" for one worker's own.
PYTHON = """#!{python} -S
import json, os, signal, sys, time
here, worker = os.environ["STAND_IN"], os.path.basename(os.environ["HOME"])
with open(f"{{here}}/program_{{worker}}.jsonl", "a+") as file:
    file.seek(0)
    started = len(file.readlines())
    seen = dict(argv=sys.argv[1:], cwd=os.getcwd(), token=os.environ.get("HF_TOKEN"))
    file.write(json.dumps(seen) + "\\n")
exits = open(f"{{here}}/exits").read().split()
end, _, own = exits[min(started, len(exits) - 1)].partition("@" + worker + "=")
end = own or end.partition("@")[0]
def stop(*_):
    time.sleep(0.3)
    crash = end.startswith("hang") and end[4:]
    print("the last line" if crash else "preempted: the checkpoint is saved", flush=True)
    sys.exit(int(crash or 143))
signal.signal(signal.SIGTERM, stop)
print(f"{{worker}} start {{started + 1}}", flush=True)
while end.startswith("hang"):
    time.sleep(0.02)
if end.startswith("late"):
    time.sleep(1)
    end = end[4:]
print("error: the batch is too large" if end == "2" else "the last line", flush=True)
sys.exit(int(end))
"""

UV = """#!/bin/bash
echo "uv $*" >>"$STAND_IN/uv.log"
if [[ $1 == venv ]]; then mkdir -p venv/bin; cp "$STAND_IN/python" venv/bin/python; fi
"""
SUDO = """#!/bin/bash
exec "$@"
"""
GCSFUSE = """#!/bin/bash
echo "$*" >>"$STAND_IN/gcsfuse.log"
[[ ! -e $STAND_IN/no_role ]] || { echo "403: no storage.objects.list access" >&2; exit 1; }
touch "${@: -1}/.mounted"
"""
MOUNTPOINT = """#!/bin/bash
[[ -e $2/.mounted ]]
"""


def executable(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def workers_programs(folder: pathlib.Path, stand_in: pathlib.Path) -> None:
    """uv, gcsfuse and the like in `folder`, noting their calls in `stand_in`."""
    executable(stand_in / "python", PYTHON.format(python=sys.executable))
    for name, text in {
        "uv": UV,
        "sudo": SUDO,
        "gcsfuse": GCSFUSE,
        "mountpoint": MOUNTPOINT,
    }.items():
        executable(folder / name, text)
