"""A SLURM cluster of one node on this machine; its key, configuration, queue and logs are all below one folder.

It needs neither cgroups nor systemd, so it runs in a container. It has no accounting: `squeue` and a text file list the jobs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PACKAGES = ("slurm-wlm", "munge")
CPUS = 2

CONFIGURATION = """
ClusterName=adcore
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
MinJobAge=3600
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Install Debian's packages unless they are installed."""
    if all(shutil.which(command) for command in ("slurmctld", "slurmd", "sbatch", "munged")):
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=True, env=quiet)
    subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES], check=True, env=quiet)


class Cluster:
    """Starts on entering the block and stops on leaving it. With `environment`, SLURM's commands use this cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"),
                            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # other users need access to munged's socket
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = one.getsockname()[1], two.getsockname()[1]
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(folder=self.folder, host=host, ports=ports, cpus=CPUS))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
        # Inside a job, Snakemake's executor removes all SLURM_ variables, also this one, before it calls srun.
        wrapper = self.folder / "bin" / "srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        wrapper.chmod(0o755)
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                        f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                        f"--seed-file={self.folder}/munged.seed", "--num-threads=2")
            self._await("munged", lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            self._await("slurmctld", lambda: "is UP" in self.ask("scontrol", "ping", check=False))
            self._start("slurmd", "-D")
            self._await("slurmd", lambda: self.ask("sinfo", "--noheader", "--format=%T", check=False).strip() == "idle")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def ask(self, *words: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, state: str = "RUNNING,PENDING,COMPLETING") -> list[str]:
        """The ids of all jobs in these states."""
        return self.ask("squeue", "--noheader", "--format=%A", f"--states={state}").split()

    def over(self) -> list[dict[str, str]]:
        """The finished jobs: JobId, JobState, Tres (requested resources), TimeLimit, ..."""
        log = self.folder / "jobs.txt"
        lines = log.read_text().splitlines() if log.is_file() else []
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def ended(self) -> dict[str, str]:
        """The state of each finished job: id -> COMPLETED, CANCELLED, FAILED, ..."""
        return {job["JobId"]: job["JobState"] for job in self.over()}

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("wb") as output:
            self._daemons.append(subprocess.Popen(words, env=self.environment, stdout=output, stderr=output,
                                                  start_new_session=True))

    def _await(self, daemon: str, ready: Callable[[], bool]) -> None:
        for _ in range(120):
            if ready():
                return
            if self._daemons[-1].poll() is not None:
                break
            time.sleep(0.5)
        logs = "".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob(f"{daemon}.*"))
                       if path.suffix in (".out", ".log"))
        raise RuntimeError(f"{daemon} does not start; its logs:\n{logs}")

    def _stop(self) -> None:
        if len(self._daemons) == 3:
            self.ask("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 30
            while self.ask("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
