"""Runs batches on a Ray cluster of two nodes on this machine, and kills what it is told to.

Usage: two_nodes.py IMAGES KILLS COMMAND... KILLS is JSON, a list of [COUNT, WHAT]: when COUNT files
are in the folder IMAGES, an "actor", the "node" or the "driver" is killed; the command is started
again after its driver was. Prints JSON: a list of [status, stdout, stderr] of the drivers.

It is to run in namespaces of its own, see `in_namespaces`: Ray stays on loopback, and no process
of it is left. Where Ray cannot start here, it prints why, and its status is NOT_STARTED.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # else a busy machine gives actors nothing
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

NOT_STARTED = 3
SECONDS_TO_START = 180


def in_namespaces(*command):
    """A command with a network and processes of its own, where only loopback is up."""
    return [
        *("unshare", "-rnpf", "--mount-proc", "--kill-child", "sh", "-c"),
        *('ip link set lo up && exec "$@"', "sh", *command),
    ]


def why_barred():
    """Why there can be no namespaces here; empty where there can."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "unshare and ip are not here"
    done = subprocess.run(in_namespaces("true"), capture_output=True, text=True, timeout=60)
    return done.stderr.strip() if done.returncode else ""


def actors():
    """The process ids of the actors that draw, which Ray names."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"MapWorker(" in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            continue


def start():
    """A cluster of two nodes, and its second node. Raises what Ray raises, or TimeoutError."""
    from ray.cluster_utils import Cluster

    def give_up(*_):
        raise TimeoutError(f"it took more than {SECONDS_TO_START} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS_TO_START)
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    signal.alarm(0)
    return cluster, second


def main(images, kills, command):
    try:
        cluster, second = start()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(NOT_STARTED)
    command = [*command, "--ray", cluster.address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    told = []
    driver = subprocess.Popen(command, **pipes)
    for count, what in kills:
        while len(list(images.glob("*.png"))) < count:
            if driver.poll() is not None:
                break
            time.sleep(0.02)
        if what == "actor":
            os.kill(next(actors()), 9)
        elif what == "node":
            cluster.remove_node(second, allow_graceful=False)
        else:
            driver.kill()
            told.append([*reversed(driver.communicate()), driver.returncode][::-1])
            driver = subprocess.Popen(command, **pipes)
    told.append([*reversed(driver.communicate()), driver.returncode][::-1])
    print(json.dumps(told), flush=True)
    os._exit(0)  # the namespace ends, and with it the cluster


if __name__ == "__main__":
    os.environ |= RAY
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
