//! What `--help` prints. `docs/cluster.md` says more.

pub(super) const COMMANDS: [&str; 12] =
    ["head", "node", "status", "list", "memory", "logs", "timeline", "gpus", "stop", "key", "version", "help"];

pub(super) const ALL: &str = "\
outray: one program on many machines

usage: outray COMMAND [OPTIONS]

  head        start the head of a cluster: one for all
  node        start a node of a cluster: one on each machine
  status      what the cluster is and does
  list        its nodes, jobs, tasks, actors, objects or placement groups
  memory      who uses how much memory
  logs        what the workers have printed
  timeline    what ran when, as a trace for Perfetto
  gpus        the GPUs of this machine
  stop        end the cluster
  key         make the key that all of a cluster share
  version     which outray this is

`outray COMMAND --help` says more.";

pub(super) const HEAD: &str = "\
Starts the head of a cluster. It runs until Ctrl-C, SIGTERM or `outray stop`, which end the cluster. If it ends in another
way, start it again with the same options within a minute: the cluster goes on.

usage: outray head [--bind HOST:PORT] [--state DIR]

  --bind HOST:PORT   where it listens; 127.0.0.1:6380 if this is not given. 0.0.0.0:PORT is all of this machine's
                     addresses. What other machines can reach needs a key: outray key new
  --state DIR        where it keeps what it needs to go on; $XDG_STATE_HOME/outray/head-PORT, or
                     ~/.local/state/outray/head-PORT, if this is not given

The key is read from the file that OUTRAY_KEY_FILE names, or from ~/.outray/key.";

pub(super) const NODE: &str = "\
Starts a node: it runs tasks and actors. It runs until Ctrl-C, SIGTERM, `outray stop`, or the end of its cluster.

usage: outray node --head HOST:PORT [OPTIONS]

  --head HOST:PORT         where the head is; OUTRAY_ADDRESS if this is not given
  --bind HOST:PORT         where the node listens; any free port of the address from which it reaches the head
                           if this is not given
  --advertise HOST         the host that others are told, if it is not the one of --bind. With 0.0.0.0 there, it is the
                           address from which the head is reached if this is not given
  --cpus N                 CPUs for tasks; those of the machine if this is not given. 0.5 is possible
  --gpus N                 so many GPUs that exist only on paper, for trying out; 0 for none. Those of the machine if this
                           is not given
  --memory SIZE            memory for tasks that ask for some, for example 4GiB; that of the machine if this is
                           not given
  --store SIZE             shared memory for objects; three tenths of the memory if this is not given. What is more goes
                           to the disk
  --resource NAME=AMOUNT   another resource that tasks may ask for; may be given several times
  --label KEY=VALUE        a label that tasks may ask for; may be given several times
  --name NAME              a name for people; tasks may ask for it as the label node=NAME

Amounts decide what is admitted; nothing limits what a task then uses. Executables of programs, and objects that do
not fit into the store, are kept in
$XDG_CACHE_HOME/outray or ~/.cache/outray.";

pub(super) const STATUS: &str = "\
Says what the cluster is and does.

usage: outray status [--address HOST:PORT] [--json]

  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given
  --json                the same as JSON";

pub(super) const LIST: &str = "\
Lists what there is now.

usage: outray list WHAT [--address HOST:PORT] [--json]

  nodes              machines that run tasks
  jobs               programs that are connected
  tasks              tasks and calls, waiting or running; those that stay in a worker only of programs that observe
  actors             actors, and their calls under way
  objects            large values in the nodes' stores, the largest first
  placement-groups   resources that are set aside together

  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given
  --json                the same as JSON";

pub(super) const MEMORY: &str = "\
Says who uses how much memory.

usage: outray memory [--address HOST:PORT] [--json]

  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given
  --json                the same as JSON";

pub(super) const LOGS: &str = "\
Prints what the workers have printed: the last 10000 lines, or 1 MiB, of each node. Times are in UTC.

usage: outray logs [--node NAME] [--follow] [--address HOST:PORT] [--json]

  --node NAME           only of this node
  --follow              and go on with what comes, until Ctrl-C
  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given
  --json                each line as JSON";

pub(super) const TIMELINE: &str = "\
Writes what ran when, on which worker of which node: the last 100000 tasks and calls of each node, and of each worker
of a program that observes. ui.perfetto.dev opens it.

usage: outray timeline FILE [--address HOST:PORT]

  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given";

pub(super) const GPUS: &str = "\
Lists the GPUs of this machine, how they are joined, and what is in use now. It asks no cluster. Exit code 3: there is
none, and stderr says why.

usage: outray gpus [--json]

  --json   the same as JSON, with exact figures

MEMORY is what programs can have. Links, from the fastest: NVLink; switch, over PCIe switches; bridge, over one host
bridge; system, over the link between CPUs, or unknown. A device with MIG on is listed as its slices.

The library of the driver is libnvidia-ml.so.1, or the file that OUTRAY_NVML_PATH names. What CUDA_VISIBLE_DEVICES hides
is left out.";

pub(super) const STOP: &str = "\
Ends the cluster: its head, its nodes and their workers. Programs that use it get errors.

usage: outray stop [--address HOST:PORT] [--json]

  --address HOST:PORT   where the head is; OUTRAY_ADDRESS, or else 127.0.0.1:6380, if this is not given
  --json                says how many there were, as JSON";

pub(super) const KEY: &str = "\
Makes a new key. Everything that belongs to a cluster, or asks it, has the same key.

usage: outray key new [PATH]

  PATH   a file that is not there yet; ~/.outray/key if this is not given";
