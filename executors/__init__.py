"""The ground floor, on which both programs stand: files, tasks and their executors, command lines. It knows no physics.

    with LocalExecutor(8, timeout_s=600) as executor:
        futures = [executor.submit(work, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            print(future.result())

Every executor is a `concurrent.futures.Executor` with the same behaviour. Calls and outcomes travel as pickles, even inline, so what works
inline works everywhere: `fn` is a module-level function, arguments and results pickle. An exception of `fn` is raised again by
`future.result()`; its `__cause__` shows the traceback from where it happened. CondorExecutor runs the same tasks as jobs of HTCondor, and
finds them again after its own death; from there only builtin types come back: nothing that a job writes is ever executed here.
POSIX (Linux, macOS); standard library, and filelock for claim_directory.

Rooms, each of which knows only those above it:

    errors        what can go wrong with a task or a command line
    commands      a program's commands and options, each a dataclass
    files         files that are seen whole or not at all; pickles of builtin types; a line that a program says on stderr
    directories   directories that are private and claimed by one controller
    tasks         a call, its time limits, how it travels, runs and answers
    base          what all executors have in common; tasks in this process
    local         tasks in processes of this machine
    calls         call and outcome files: what a job reads and leaves
    program       what a job runs: a script, or one file that travels with it
    schedd        HTCondor's tools, each call with a time limit; the queue, asked at intervals, and patience where it is silent
    job_runs      the id that marks a directory's jobs; removing them
    job_files     the files of a directory of jobs, what travels, and what happened to the tasks
    condor_tasks  the record of a task that is a job; the table of all
    submitter     waiting tasks made into jobs, in the words of submit files
    remedies      what is done about jobs: outcomes, holds, stragglers, losses
    follower      what becomes of jobs, as log and queue tell it
    condor        CondorExecutor: what callers use, and the watching thread
    choose        where tasks run, as settings, and the executor that they stand for
"""

__version__ = "0.1.0"  # of all programs here: this floor is the one that they share
