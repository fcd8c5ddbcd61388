"""The rows of benches/cluster.rs on Ray: two nodes of one CPU each on this machine.

Prints a line for each row, `name value unit, note`, as the bench does. Everything that it starts ends with it.
"""

import ctypes
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time

import numpy as np

MIB = 1 << 20
STORE = 4 << 30


def say(name, value, unit, note):
    print(f"{name:<17}{value:>12.{2 if value < 10 else 1 if value < 100 else 0}f} {unit:<5} {note}", flush=True)


def ours():
    """The processes that this one has started, and theirs. Whose parent has ended is this one's child."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    state, parent = stat.read().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue  # it has ended
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, look_at = [], [os.getpid()]
    while look_at:
        below = children.get(look_at.pop(), [])
        found += below
        look_at += below
    return found


def proportional(pids):
    """Their memory, with their part of what they share, in MiB."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except OSError:
            pass  # it has ended
    return total / 1024


def median(times):
    return statistics.median(times)


def timed(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def again(work):
    """The median of five rounds, in milliseconds."""
    return statistics.median(timed(work)[0] for _ in range(5)) * 1e3


def trips(count, trip):
    times = [timed(trip)[0] for _ in range(count + count // 10)]
    return times[count // 10 :]


def rows(ray, Cluster):
    def node(name):
        return dict(num_cpus=1, object_store_memory=STORE, resources={name: 1000}, include_dashboard=False)

    @ray.remote
    def nothing():
        pass

    def head():
        return Cluster(initialize_head=True, head_node_args=node("a"))

    def start():
        cluster = head()
        ray.init(address=cluster.address, log_to_driver=False)
        ray.get(nothing.remote())
        return cluster

    took, cluster = timed(start)
    say("start", took * 1e3, "ms", "a head that is a node, to the first result")
    ray.shutdown()
    cluster.shutdown()

    cluster = head()
    cluster.add_node(**node("b"))
    cluster.wait_for_nodes()
    time.sleep(5)  # until it has started the workers that it starts ahead
    say("idle", proportional(ours()), "MiB", "PSS of two nodes, one of them the head")
    ray.init(address=cluster.address, log_to_driver=False)

    def tasks():
        ray.get([nothing.remote() for _ in range(10_000)])

    tasks()
    say("tasks", 10_000 / timed(tasks)[0], "/s", "submit 10000 and get all")
    say("round_trip", median(trips(500, lambda: ray.get(nothing.remote()))) * 1e6, "us", "p50, one task")

    @ray.remote
    class Echo:
        def echo(self, n):
            return n

    echo = Echo.remote()
    say("actor_round_trip", median(trips(500, lambda: ray.get(echo.echo.remote(1)))) * 1e6, "us", "p50, one call")

    def calls():
        ray.get([echo.echo.remote(n) for n in range(10_000)])

    calls()
    say("actor_pipelined", 10_000 / timed(calls)[0], "/s", "10000 calls")
    del echo

    @ray.remote
    def leaf(n):
        return np.full(1024, float(n))

    @ray.remote
    def add(a, b):
        return a + b

    def tree():
        layer = [leaf.remote(n) for n in range(1024)]
        while len(layer) > 1:
            layer = [add.remote(layer[at], layer[at + 1]) for at in range(0, len(layer), 2)]
        assert ray.get(layer[0])[0] == 1024 * 1023 / 2

    tree()
    say("tree", again(tree), "ms", "1024 arrays of 8 KiB in 2047 tasks, median of five")

    @ray.remote
    def one():
        return 0

    @ray.remote
    def link(n):
        return n + 1

    def chain():
        last = one.remote()
        for _ in range(999):
            last = link.remote(last)
        assert ray.get(last) == 999

    chain()
    say("chain", again(chain), "ms", "1000 dependent tasks, median of five")

    array = np.ones(100 * MIB, dtype=np.uint8)
    gigabytes = array.nbytes / 1e9
    into = np.empty_like(array)
    np.copyto(into, array)
    copies = [timed(lambda: np.copyto(into, array))[0] for _ in range(5)]
    say("memcpy", gigabytes / median(copies), "GB/s", "100 MiB, to memory that is there")

    @ray.remote
    def last(array):
        return int(array[-1])

    def put():
        assert ray.get(last.remote(ray.put(array))) == 1

    say("put_cold", gigabytes / timed(put)[0], "GB/s", "100 MiB array, put and used by a task, the first")
    say("put", gigabytes / median([timed(put)[0] for _ in range(5)]), "GB/s", "100 MiB array, put and used by a task")

    @ray.remote
    def make(length, n):
        return np.full(length, n, dtype=np.uint8)

    times = []
    for n in range(1, 4):
        made = make.options(resources={"a": 1}).remote(1 << 30, n)
        ray.wait([made], fetch_local=False)
        took, array_of_one = timed(lambda: ray.get(made))
        assert array_of_one[-1] == n
        times.append(took)
        del made, array_of_one
    say("get", median(times) * 1e6, "us", "1 GiB array, made on the same machine")

    times = []
    for n in range(6):
        made = make.options(resources={"a": 1}).remote(100 * MIB, n)
        ray.wait([made], fetch_local=False)
        took, value = timed(lambda: ray.get(last.options(resources={"b": 1}).remote(made)))
        assert value == n
        times.append(took)
    say("node_to_node", gigabytes / median(times[1:]), "GB/s", "100 MiB array, to a task on the other node")

    ray.shutdown()
    cluster.shutdown()


def main():
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS"] = "0"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    directory = tempfile.mkdtemp(prefix="ray-")
    os.environ["RAY_TMPDIR"] = directory
    os.mkdir(f"{directory}/ray")  # Ray writes a file there before it makes it
    try:
        import ray
        from ray.cluster_utils import Cluster

        print(f"# ray {ray.__version__}", flush=True)
        rows(ray, Cluster)
    finally:
        # Workers that were started while others ended, too.
        while left := ours():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
