"""HTCondor's tools, as far as executors/ needs them, and a pool that lives in one SQLite file.

Called as condor_submit, condor_q, ... it is such a tool (`install` puts them into a folder, `fake_condor.py forge` runs their jobs fast);
imported, it gives the tests Pool, with which they see every call and let jobs run, finish, vanish, be held. Output, exit codes and log
events are those of a real pool (HTCondor 23.9.6).
"""

import contextlib
import importlib
import json
import os
import re
import signal
import sqlite3
import sys
import time

IDLE, RUNNING, REMOVED, _, HELD = range(1, 6)
SCHEMA = """
    create table if not exists calls (number integer primary key, tool text, arguments text);
    create table if not exists clusters (id integer primary key autoincrement);
    create table if not exists jobs (cluster int, proc int, status int, gone text, ad text, start real, pid int, hold_code int,
        hold_reason text, primary key (cluster, proc));
    create table if not exists settings (name text primary key, value text);
    create table if not exists runner (pid int);
"""
DEFAULTS = {
    "run": "idle",  # idle: jobs wait for the test; now: within condor_submit; background: in processes, `slots` at a time
    "slots": 4,
    "down": False,  # every tool fails, or those named
    "garbage": None,  # what condor_q prints, and its exit code
    "submit_error": None,  # the message with which condor_submit fails
    "submit_after": None,  # what the next condor_submit does after it has committed: error, die, hang, silent
    "submit_takes_s": 0,  # before it commits
    "removal_lingers": False,  # condor_rm marks jobs only
}
USAGE = (
    "\t(%d) %s\n\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  Run Remote Usage\n\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage\n"
    "%s\t0  -  Run Bytes Sent By Job\n\t0  -  Run Bytes Received By Job\n%s"
    "\tPartitionable Resources :    Usage  Request Allocated \n\t   Cpus                 :     0.97        1         1 \n"
    "\t   Memory (MB)          :        6     1024      1024 \n\t   TimeExecute (s)      :        1                    \n"
)
TOTAL = (
    "\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  Total Remote Usage\n\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Local Usage\n",
    "\t0  -  Total Bytes Sent By Job\n\t0  -  Total Bytes Received By Job\n",
)


class ToolError(Exception):
    pass


class Job:
    def __init__(self, row):
        self.row = tuple(row)
        self.cluster, self.proc, self.status, self.gone, ad, self.start, self.pid, self.hold_code, self.hold_reason = row
        self.ad = json.loads(ad)  # the lines of the submit file, keys in lower case, macros replaced
        self.key = (self.cluster, self.proc)
        self.task = self.ad["my.condorworkertask"].strip('"')
        self.cpus, self.memory, self.priority = (int(self.ad.get(k, 0)) for k in ("request_cpus", "request_memory", "priority"))

    def __str__(self):
        return f"{self.cluster}.{self.proc}"

    def path(self, suffix):
        return os.path.join(self.ad["initialdir"], self.task + suffix)

    def attributes(self):
        """What condor_q shows."""
        shown = {"ClusterId": self.cluster, "ProcId": self.proc, "JobStatus": self.status, "JobPrio": self.priority, "Owner": "me"}
        shown |= {"RequestCpus": self.cpus, "RequestMemory": self.memory, "CondorWorkerTask": self.task}
        shown["CondorWorkerRun"] = self.ad["my.condorworkerrun"].strip('"')
        if self.start is not None:
            shown["JobCurrentStartDate"] = int(self.start)
        if self.status == HELD:
            shown |= {"HoldReasonCode": self.hold_code, "HoldReason": self.hold_reason}
        return shown

    def command(self):
        return [self.ad["executable"], *split_quoted(self.ad["arguments"])]

    def environment(self):
        return dict(word.split("=", 1) for word in split_quoted(self.ad["environment"]))


class Pool:
    def __init__(self, directory):
        self.path = os.path.join(directory, "pool.sqlite")
        if not os.path.exists(self.path):
            with self.database() as database:
                database.executescript(SCHEMA)

    @contextlib.contextmanager
    def database(self):
        """A connection that holds the lock; what is changed is seen together, at the end of the block."""
        database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            database.execute("pragma synchronous = off")
            database.execute("begin immediate")
            yield database
            if database.in_transaction:
                database.execute("commit")
        finally:
            database.close()

    def set(self, **settings):
        assert settings.keys() <= DEFAULTS.keys()
        with self.database() as database:
            database.executemany("replace into settings values (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()])

    def settings(self):
        with self.database() as database:
            return DEFAULTS | {name: json.loads(value) for name, value in database.execute("select * from settings")}

    # what happened -------------------------------------------------------------------------------------------------

    def calls(self, tool=""):
        """(tool, arguments) of the calls so far."""
        with self.database() as database:
            rows = database.execute("select tool, arguments from calls where tool like ? order by number", [f"{tool}%"])
            return [(name, json.loads(arguments)) for name, arguments in rows]

    def note_call(self, tool, arguments):
        with self.database() as database:
            database.execute("insert into calls (tool, arguments) values (?, ?)", [tool, json.dumps(arguments)])

    def history(self):
        """All jobs ever, in the order of submission."""
        with self.database() as database:
            return list(map(Job, database.execute("select * from jobs order by cluster, proc")))

    def jobs(self, *status):
        """Those in the queue."""
        return [job for job in self.history() if job.gone is None and (not status or job.status in status)]

    # what happens --------------------------------------------------------------------------------------------------

    def change(self, database, job, **columns):
        names = ", ".join(f"{name} = ?" for name in columns)
        database.execute(f"update jobs set {names} where cluster = ? and proc = ?", [*columns.values(), *job.key])

    def log(self, job, *events):
        """events: (number, text) or (number, text, when)"""
        lines = []
        for number, text, *when in events:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(*when))
            lines.append(f"{number:03d} ({job.cluster:03d}.{job.proc:03d}.000) {stamp} {text.rstrip()}\n...\n")
        self.append(job, "".join(lines))

    def append(self, job, text):
        if "log" in job.ad:
            log = os.open(os.path.join(job.ad["initialdir"], job.ad["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(log, text.encode())
            finally:
                os.close(log)

    def started(self, when=None):
        text = "Job executing on host: <127.0.0.1:36637?addrs=127.0.0.1-36637>\n\tSlotName: slot1_1@node\n\tCpus = 1\n\tMemory = 1024"
        return 1, text, when

    def evicted(self, when=None):
        return 4, "Job was evicted.\n" + USAGE % (0, "CPU times", "", ""), when

    def start(self, job, ago_s=0, before=()):
        """The job runs, since ago_s seconds; what the log says of the time before comes together with it."""
        with self.database() as database:
            self.change(database, job, status=RUNNING, start=time.time() - ago_s)
            self.log(
                job, *before, self.started(time.time() - ago_s), (6, "Image size of job updated: 5184\n\t3  -  MemoryUsage of job (MB)")
            )

    def perform(self, job):
        """Do the work of a job, in a process of its own; the pool does not notice. Its exit code."""
        self.forge.stdin.write(f"{json.dumps(job.row)}\n")
        self.forge.stdin.flush()
        return int(self.forge.stdout.readline())

    def run(self, job):
        self.start(job)
        self.finish(job, self.perform(job))

    def finish(self, job, exit_code=0):
        """The job ends, by a signal where the code is negative; whatever it has left."""
        self.leave(job, "completed", terminated(exit_code))

    def leave(self, job, how, *events):
        with self.database() as database:
            self.change(database, job, gone=how)
            self.log(job, *events)

    def vanish(self, job):
        self.leave(job, "vanished")

    def evict(self, job):
        with self.database() as database:
            self.change(database, job, status=IDLE)
            self.log(job, self.evicted())

    def hold(self, job, code, reason, subcode=0):
        with self.database() as database:
            self.change(database, job, status=HELD, hold_code=code, hold_reason=reason)
            self.log(job, *[self.evicted()] * (job.status == RUNNING), (12, f"Job was held.\n\t{reason}\n\tCode {code} Subcode {subcode}"))
        kill_group(job.pid)

    def release(self, job):
        with self.database() as database:
            self.change(database, job, status=IDLE, hold_code=None, hold_reason=None)
            self.log(job, (13, "Job was released.\n\tvia condor_release (by user me)"))

    def remove(self, job, lingers=False):
        with self.database() as database:
            if lingers:
                self.change(database, job, status=REMOVED)
                return
            self.change(database, job, gone="removed")
            self.log(job, *[self.evicted()] * (job.status == RUNNING), (9, "Job was aborted.\n\tvia condor_rm (by user me)"))
        kill_group(job.pid)

    def copy(self, job):
        """The same job once more, in a cluster of its own."""
        with self.database() as database:
            cluster = database.execute("insert into clusters default values").lastrowid
            insert(database, cluster, [job.ad])

    # jobs that run by themselves -----------------------------------------------------------------------------------

    def serve(self):
        """Have what is idle run in processes until nothing is left, by a process that outlives the caller."""
        import subprocess

        with self.database() as database:
            if not any(alive(pid) for (pid,) in database.execute("select pid from runner")):
                streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                runner = subprocess.Popen([sys.executable, "-IS", __file__, os.path.dirname(self.path)], start_new_session=True, **streams)
                database.execute("delete from runner")
                database.execute("insert into runner values (?)", [runner.pid])

    def run_all(self):
        children, slots = {}, self.settings()["slots"]
        while True:
            for job in self.claim(slots - len(children), last=not children):
                children[self.fork(job)] = job
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                self.reap(children.pop(pid), os.waitstatus_to_exitcode(status))
            time.sleep(0.01)

    def claim(self, number, last):
        with self.database() as database:
            rows = database.execute("select * from jobs where gone is null and status = 1 order by cluster, proc")
            idle = sorted(map(Job, rows), key=lambda job: -job.priority)
            if last and not idle:
                database.execute("delete from runner")
                database.execute("commit")
                os._exit(0)
            for job in idle[:number]:
                self.change(database, job, status=RUNNING, start=time.time(), pid=None)
                self.log(job, self.started())
        return idle[:number]

    def fork(self, job):
        pid = fork_job(job)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        with self.database() as database:
            self.change(database, job, pid=pid)
            ((gone, status),) = database.execute("select gone, status from jobs where cluster = ? and proc = ?", job.key)
        if gone or status != RUNNING:  # removed or held before its process was known
            kill_group(pid)
        return pid

    def reap(self, job, exit_code):
        with self.database() as database:
            ((gone, status),) = database.execute("select gone, status from jobs where cluster = ? and proc = ?", job.key)
            if gone is None and status == RUNNING:
                self.change(database, job, gone="completed")
                self.log(job, terminated(exit_code))

    def run_now(self, jobs):
        """Run jobs within this process."""
        for start in range(0, len(jobs), 500):
            codes = []
            for job in jobs[start : start + 500]:
                with job_directory(job):
                    codes.append(run_command(job.command(), job.environment()))
            with self.database() as database:
                for job, code in zip(jobs[start:], codes):
                    self.change(database, job, gone="completed")
                    self.log(job, self.started(), terminated(code))

    def kill(self):
        """End the processes of the pool."""
        with self.database() as database:
            pids = [pid for (pid,) in database.execute("select pid from runner") if alive(pid)]
            groups = [pid for (pid,) in database.execute("select pid from jobs where gone is null") if pid and alive(pid)]
            for pid in pids:  # while nobody can register another
                os.kill(pid, signal.SIGKILL)
            for pid in groups:
                kill_group(pid)


def terminated(exit_code):
    if exit_code < 0:
        text = "Job terminated.\n" + USAGE % (0, f"Abnormal termination (signal {-exit_code})\n\t(0) No core file", *TOTAL)
        return 5, text + f"\n\tJob terminated of its own accord with signal {-exit_code}."
    text = "Job terminated.\n" + USAGE % (1, f"Normal termination (return value {exit_code})", *TOTAL)
    return 5, text + f"\n\tJob terminated of its own accord with exit-code {exit_code}."


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_group(pid):
    if pid:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def run_command(command, environment):
    """The exit code of a job's command, run in this process if it is a script."""
    if not command[1].endswith(".py"):
        import subprocess

        return subprocess.run(command, env=environment).returncode
    try:
        return load_worker(command[1]).main(command[2:]) or 0
    except SystemExit as leaving:
        return leaving.code or 0


def load_worker(path):
    if "condor_worker" not in sys.modules:
        sys.path.insert(0, os.path.dirname(path))
    return importlib.import_module("condor_worker")


def fork_job(job):
    """The process of a job."""
    command = job.command()
    if command[1].endswith(".py"):
        load_worker(command[1])  # once, here
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        code = 70
        try:
            os.dup2(os.open(job.path(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
            os.environ.clear()
            os.environ.update(job.environment())
            with job_directory(job):
                code = run_command(command, job.environment())
        finally:
            os._exit(code)
    return pid


def forge():
    """Run the jobs that come on standard input, one after the other: a fork of this process takes no time to start."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    for line in sys.stdin:
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(fork_job(Job(json.loads(line))), 0)[1])}\n")
        answers.flush()


@contextlib.contextmanager
def job_directory(job):
    """Be where the job runs: in its initial directory, or in a scratch directory to which its files are copied, and back."""
    home = job.ad["initialdir"]
    if job.ad.get("should_transfer_files", "no").lower() != "yes":
        os.chdir(home)
        yield
        return
    import shutil

    scratch = os.path.join(home, f"scratch-{job}")
    os.mkdir(scratch)
    os.chdir(scratch)
    try:
        for name in filter(None, map(str.strip, job.ad["transfer_input_files"].split(","))):
            shutil.copy2(os.path.join(home, name), scratch)
        before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
        yield
        for name in os.listdir():
            if os.path.isfile(name) and before.get(name) != os.stat(name).st_mtime_ns:
                shutil.copy2(name, home)
    finally:
        os.chdir(home)
        shutil.rmtree(scratch)


# the tools ---------------------------------------------------------------------------------------------------------


def split_quoted(value):
    """Words of HTCondor's new syntax: "one 'two words' it''s", where "" stands for a double quote."""
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        raise ToolError(f"ERROR: old syntax: {value}")
    inner = value[1:-1]
    if re.search('(?<!")"("")*(?!")', inner):
        raise ToolError(f"ERROR: unescaped double quote: {value}")
    words, word, quoted, i = [], None, False, 0
    inner = inner.replace('""', '"')
    while i < len(inner):
        c = inner[i]
        if c == "'" and quoted and inner[i + 1 : i + 2] == "'":
            word, i = word + "'", i + 1
        elif c == "'":
            word, quoted = word or "", not quoted
        elif c in " \t" and not quoted:
            words, word = words + [word] * (word is not None), None
        else:
            word = (word or "") + c
        i += 1
    if quoted:
        raise ToolError(f"ERROR: unbalanced quote: {value}")
    return words + [word] * (word is not None)


def replace_macros(value, names):
    value = re.sub(r"(?<!\$)\$ENV\((\w+)\)", lambda found: os.environ.get(found[1], ""), value)
    value = re.sub(r"(?<!\$)\$\((?!DOLLAR\))(\w+)(?::([^)]*))?\)", lambda found: names.get(found[1].lower(), found[2] or ""), value)
    before = None
    while value != before:  # as the real one, which takes the second of two for the argument of a $$
        before, value = value, re.sub(r"(?<!\$)\$\(DOLLAR\)", "$", value, count=1)
    return value


def read_submit_file(path):
    """The ads of a submit file."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    keys, items = {}, None
    for line in map(str.strip, lines):
        if not line or line.startswith("#"):
            continue
        if items is not None:
            raise ToolError(f"ERROR: after the queue statement: {line}")
        if queue := re.fullmatch(r"queue\s+([\w, ]+?)\s+from\s+(.+)", line, re.IGNORECASE):
            names = re.split("[, ]+", queue[1])
            with open(queue[2], encoding="utf-8") as file:
                items = [dict(zip(names, re.split(r"\s*,\s*|\s+", row.strip(), maxsplit=len(names) - 1))) for row in file if row.strip()]
        elif setting := re.fullmatch(r"(\+?[\w.]+)\s*=\s*(.*)", line):
            keys[setting[1].lower().replace("+", "my.", 1)] = setting[2]
        else:
            raise ToolError(f"ERROR: on line: {line}")
    if items is None:
        raise ToolError("ERROR: no queue statement")
    constant = {key: value for key, value in keys.items() if "$" not in value}
    varying = {key: value for key, value in keys.items() if "$" in value}
    for item in items:
        names = {key.lower(): value for key, value in item.items()}
        yield constant | {key: replace_macros(value, names) for key, value in varying.items()}


def check_ad(ad):
    if ad.get("universe", "vanilla") != "vanilla":
        raise ToolError(f"ERROR: I don't know about the '{ad['universe']}' universe.")
    if ad.get("transfer_executable", "true").lower() == "true" and not os.path.exists(ad["executable"]):
        raise ToolError(f"ERROR: Executable file {ad['executable']} does not exist")
    if not os.path.isdir(ad["initialdir"]):
        raise ToolError(f"ERROR: No such directory: {ad['initialdir']}")
    split_quoted(ad["arguments"])
    split_quoted(ad.get("environment", '""'))


def insert(database, cluster, ads):
    rows = [(cluster, proc, IDLE, None, json.dumps(ad), None, None, None, None) for proc, ad in enumerate(ads)]
    database.executemany("insert into jobs values (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return list(map(Job, rows))


def condor_submit(pool, arguments, settings):
    (path,) = arguments
    sys.stdout.write("Submitting job(s)")
    sys.stdout.flush()
    if settings["submit_error"]:
        raise ToolError(settings["submit_error"])
    ads = list(read_submit_file(path))
    check_ad(ads[0])
    time.sleep(settings["submit_takes_s"])
    with pool.database() as database:  # a number once given is not given again
        cluster = database.execute("insert into clusters default values").lastrowid
    with pool.database() as database:
        jobs = insert(database, cluster, ads)
        texts = [
            f"000 ({cluster:03d}.{job.proc:03d}.000) {time.strftime('%Y-%m-%d %H:%M:%S')} Job submitted from host: <127.0.0.1:1>"
            for job in jobs
        ]
        pool.append(jobs[0], "".join(f"{text}\n...\n" for text in texts))
    after = settings["submit_after"]
    pool.set(submit_after=None)
    if settings["run"] == "now":
        pool.run_now(jobs)
    elif settings["run"] == "background":
        pool.serve()
    if after == "error":
        raise ToolError("\nERROR: Failed to commit job submission into the queue.\nERROR: Failed to receive message from schedd")
    if after == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if after == "hang":
        signal.pause()
    if after != "silent":
        print(f"{'.' * min(len(jobs), 60)}\n{len(jobs)} job(s) submitted to cluster {cluster}.")


def select_jobs(pool, words):
    """The jobs in the queue that a constraint or ids name."""
    if words[0] != "-constraint":
        return [job for job in pool.jobs() if str(job) in words]
    match = re.fullmatch(r'(\w+)==("[^"]*")', words[1])
    if match is None:
        raise ToolError(f"Error: cannot parse constraint {words[1]}")
    return [job for job in pool.jobs() if job.attributes()[match[1]] == json.loads(match[2])]


def condor_q(pool, arguments, settings):
    """As it is asked here: condor_q -constraint X -json -attributes Y."""
    if settings["garbage"]:
        text, code = settings["garbage"]
        sys.stdout.write(text)
        return code
    constraint, json_words, attributes = arguments[:2], arguments[2:4], arguments[4]
    if json_words != ["-json", "-attributes"]:
        raise ToolError(f"the fake condor_q does not know {arguments}")
    jobs, names = select_jobs(pool, constraint), {name.lower() for name in attributes.split(",")}
    ads = [{name: value for name, value in job.attributes().items() if name.lower() in names} for job in jobs]
    if ads:
        print("[\n" + "\n,\n".join(json.dumps(ad, indent=2) for ad in ads) + "\n]")
    if settings["run"] == "background" and any(job.status == IDLE for job in jobs):
        pool.serve()
    return 0


def condor_rm(pool, arguments, settings):
    return act_on_jobs(pool, arguments, settings, lambda job: pool.remove(job, settings["removal_lingers"]), lambda job: True)


def condor_release(pool, arguments, settings):
    return act_on_jobs(pool, arguments, settings, pool.release, lambda job: job.status == HELD)


def act_on_jobs(pool, arguments, settings, act, may_act):
    """Exit code 0 if there was a job to act on; what the real tools print is read by nobody."""
    jobs = [job for job in select_jobs(pool, arguments) if may_act(job)]
    for job in jobs:
        act(job)
    if settings["run"] == "background":
        pool.serve()
    return 0 if jobs else 1


TOOLS = {tool.__name__: tool for tool in (condor_submit, condor_q, condor_rm, condor_release)}


def install(folder):
    """Put the tools into a folder."""
    text = f"#!{sys.executable} -IS\nimport sys\n\nsys.path.append({os.path.dirname(__file__)!r})\nimport fake_condor\n\n"
    for name in TOOLS:
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "sys.exit(fake_condor.main())\n")
        os.chmod(path, 0o755)


def main():
    tool, pool = os.path.basename(sys.argv[0]), Pool(os.environ["FAKE_CONDOR"])
    pool.note_call(tool, sys.argv[1:])
    try:
        settings = pool.settings()
        if settings["down"] is True or tool in (settings["down"] or ()):
            raise ToolError("\n-- Failed to fetch ads from: <127.0.0.1:9618> : CEDAR:6001:Failed to connect to <127.0.0.1:9618>")
        return TOOLS[tool](pool, sys.argv[1:], settings)
    except ToolError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    Pool(sys.argv[1]).run_all() if sys.argv[1:] else forge()
