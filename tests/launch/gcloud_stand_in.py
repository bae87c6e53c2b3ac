"""Stand-in for gcloud: a folder holds queued resources, and workers as folders.

Run as `gcloud ...` with STAND_IN naming the folder. `scenario.json` there says what goes wrong;
`calls.jsonl` gets every command line. What is sent over ssh really runs, in bash, with a home
folder a worker.
"""

import json
import os
import sys

HERE = os.environ["STAND_IN"]
# Other modules are imported where they are needed: most calls only ask for a state, and there are
# hundreds.


def main(argv):
    with open(f"{HERE}/calls.jsonl", "a") as calls:
        calls.write(json.dumps(argv) + "\n")
    with open(f"{HERE}/scenario.json") as file:
        scenario = json.load(file)
    cloud = {"faults": {}}
    if os.path.exists(f"{HERE}/cloud.json"):
        with open(f"{HERE}/cloud.json") as file:
            cloud = json.load(file)
    line = " ".join(argv)
    # Faults: the n-th calls of which a text is part fail with these words.
    for i, fault in enumerate(scenario.get("faults", [])):
        if fault["call"] in line and cloud["faults"].get(str(i), 0) < fault.get("times", 1):
            cloud["faults"][str(i)] = cloud["faults"].get(str(i), 0) + 1
            save(cloud)
            return fail(fault["says"], fault.get("code", 1))
    group, verb = (argv[2:4] if argv[0] == "compute" else argv[:2]) if len(argv) > 3 else ("", "")
    if argv[:3] == ["storage", "buckets", "describe"]:
        print(scenario.get("hierarchical", True))
        return 0
    name = argv[4].rstrip(":")
    if verb == "scp":
        name = next(arg for arg in argv if arg.endswith(":")).rstrip(":")
        import shutil

        for home in homes(name, scenario):
            for file in argv[4 : argv.index(name + ":")]:
                shutil.copy(file, home)
        return 0
    if verb == "ssh":
        return ssh(name, argv, scenario, cloud)
    if group == "tpu-vm":
        if cloud["unmade"]:
            cloud["unmade"] -= 1
            save(cloud)
            return fail(f"NOT_FOUND: Resource '{name}' was not found")
        print(cloud.get("node", "READY"))
        return 0
    return queued_resource(verb, name, argv, scenario, cloud)


def queued_resource(verb, name, argv, scenario, cloud):
    if verb == "create":
        if "states" in cloud:
            return fail("ALREADY_EXISTS: Resource already exists")
        created = cloud["created"] = cloud.get("created", 0) + 1
        states = scenario.get("states", ["ACTIVE"])
        cloud["states"] = (
            states[min(created, len(states)) - 1] if isinstance(states[0], list) else states
        )
        # A request's number, and how many times its machines are asked for before they are there.
        cloud["unmade"] = scenario.get("unmade", {}).get(str(created), 0)
        count = int(argv[argv.index("--node-count") + 1]) if "--node-count" in argv else 0
        cloud["nodes"] = [f"{name}-{i}" for i in range(count)] or [name]
        for node in cloud["nodes"]:
            for home in homes(node, scenario):
                os.makedirs(home)
        save(cloud)
        return 0
    if "states" not in cloud:
        return fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "delete":
        import shutil

        kill(cloud, scenario)
        for node in cloud["nodes"]:
            shutil.rmtree(f"{HERE}/{node}")
        del cloud["states"]
        cloud["node"] = "READY"
        save(cloud)
        return 0
    if "failedData" in argv[argv.index("--format") + 1]:
        print(scenario["failure"])
        return 0
    print(cloud["states"][0])
    cloud["states"] = cloud["states"][1:] or cloud["states"]
    save(cloud)
    return 0


def ssh(node, argv, scenario, cloud):
    command, workers = argv[argv.index("--command") + 1], argv[argv.index("--worker") + 1]
    chosen = homes(node, scenario) if workers == "all" else [homes(node, scenario)[int(workers)]]
    if " follow " in command:
        follows = cloud["follows"] = cloud.get("follows", 0) + 1
        save(cloud)
        event = scenario.get("follow", {}).get(str(follows))
        if event:
            return interrupt(event, chosen[0], int(command.split()[-2]), cloud, scenario)
    codes = [run(command, home) for home in chosen]
    return next((code for code in codes if code), 0)


def interrupt(event, home, number, cloud, scenario):
    """Breaks the connection after a line of the log, alone or with everything on the slice."""
    import time

    lines = []
    while len(lines) < number or not lines[number - 1].endswith("\n"):
        time.sleep(0.01)
        if os.path.exists(f"{home}/uvit/run.log"):
            with open(f"{home}/uvit/run.log") as log:
                lines = log.readlines()
    print(f"uvit-worker: line {number}\n{lines[number - 1]}", end="", flush=True)
    if event == "preempted":  # the request says so
        kill(cloud, scenario)
        cloud["states"] = ["SUSPENDING", "SUSPENDED"]
    elif event == "machines preempted":  # the request doesn't know yet
        kill(cloud, scenario)
        cloud["node"] = "PREEMPTED"
    elif event == "machines gone":  # nor does it say why
        kill(cloud, scenario)
        cloud["unmade"] = 99
    save(cloud)
    return fail("[/usr/bin/ssh] exited with return code [255].", 255)


def run(command, home):
    import subprocess

    environ = {**os.environ, "HOME": home, "UVIT_STOP_SECONDS": "5"}
    starts = " start " in command and not runs(home)
    before = begun(home)
    code = subprocess.run(["bash", "-c", command], env=environ, cwd=home, check=False).returncode
    if starts and not code:
        # Tests count what began: on a busy machine a stop or a delete could come before a program's
        # first line.
        import time

        deadline = time.monotonic() + 20
        while begun(home) == before and time.monotonic() < deadline:
            time.sleep(0.01)
    return code


def begun(home):
    path = f"{HERE}/program_{os.path.basename(home)}.jsonl"
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        return len(file.readlines())


def runs(home):
    return os.path.exists(f"{home}/uvit/run.pid") and not os.path.exists(f"{home}/uvit/run.exit")


def homes(node, scenario):
    return [f"{HERE}/{node}/worker{i}" for i in range(scenario.get("workers", 2))]


def kill(cloud, scenario):
    import contextlib

    for node in cloud["nodes"]:
        for home in homes(node, scenario):
            if runs(home):
                with open(f"{home}/uvit/run.pid") as pid:
                    group = int(pid.read())
                with contextlib.suppress(
                    ProcessLookupError
                ):  # killed before, when its machine was taken away
                    os.killpg(group, 9)


def save(cloud):
    with open(f"{HERE}/cloud.json", "w") as file:
        json.dump(cloud, file)


def fail(says, code=1):
    print(f"ERROR: (gcloud.some.command) {says}", file=sys.stderr)
    return code


sys.exit(main(sys.argv[1:]))
