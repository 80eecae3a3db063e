"""A Slurm of one node, for tests that need a real one.

Starts munged, slurmctld and slurmd of the machine, each with files of its own
in one folder and on ports of its own: a Slurm that runs already is not
touched. No GPU is needed: the node pretends to have two.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'sinfo')
PARTITION = 'local'
START_SECONDS = 60

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
GresTypes=gpu
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""  # noqa: E501


def why_not() -> str:
    """Why there can be no Slurm here; empty if there can."""
    missing = [p for p in PROGRAMS if _program(p) is None]
    if missing:
        return (
            f'{", ".join(missing)} not installed (Debian: apt install '
            'slurm-wlm munge)'
        )
    return '' if os.geteuid() == 0 else 'only root can start a Slurm'


def _program(name: str) -> str | None:
    return shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm that runs inside the ``with``.

    Args:
        folder: Empty; its path is short, since sockets have short names.

    Yields:
        Environment variables that lead srun to it.

    Raises:
        RuntimeError: It did not start; the message holds the logs.
    """
    host = socket.gethostname().partition('.')[0]
    folder.chmod(0o755)
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / 'slurm.conf'
    conf.write_text(
        CONF.format(
            host=host,
            folder=folder,
            ports=_free_ports(2),
            partition=PARTITION,
            cpus=max(2, os.cpu_count() or 1),
        )
    )
    (folder / 'gres.conf').write_text(
        f'NodeName={host} Name=gpu File=/dev/tty[1-2]\n'
    )
    env = {'SLURM_CONF': str(conf)}
    processes = []

    def start(name: str, *arguments: str) -> None:
        with (folder / f'{name}.out').open('w') as out:
            processes.append(
                subprocess.Popen(
                    [_program(name), *arguments],
                    env=os.environ | env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    try:
        start(
            'munged',
            '--foreground',
            '--force',
            f'--key-file={key}',
            f'--socket={folder}/munge.socket',
            f'--pid-file={folder}/munged.pid',
            f'--log-file={folder}/munged.log',
            f'--seed-file={folder}/munge.seed',
        )
        _wait(lambda: (folder / 'munge.socket').exists(), folder)
        start('slurmctld', '-D')
        start('slurmd', '-D')
        _wait(lambda: _state(env) == 'idle', folder)
        yield env
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _state(env: dict[str, str]) -> str:
    done = subprocess.run(
        ['sinfo', '--noheader', '--format=%t'],
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def _wait(ready, folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > end:
            logs = sorted([*folder.glob('*.log'), *folder.glob('*.out')])
            text = '\n'.join(
                f'{path.name}:\n{path.read_text()[-1000:]}' for path in logs
            )
            raise RuntimeError(f'Slurm did not start.\n{text}')
        time.sleep(0.2)
