"""Processes of the demo: order, failure, progress."""

import json
import os
import re
import sys
import time

import pytest


@pytest.fixture(scope='module')
def jobs(demo):
    return demo('jobs')


@pytest.fixture
def make_job(jobs, tmp_path):
    def make(name, *codes, **kwargs):
        commands = [[sys.executable, '-c', code] for code in codes]
        kwargs.setdefault('seconds', 1.0)
        return jobs.Job(name, commands, tmp_path / f'{name}.log', **kwargs)

    return make


@pytest.fixture
def run(jobs, tmp_path):
    def run(*jobs_to_run, workers=2, report=lambda job: ''):
        pool = jobs.Pool(
            jobs_to_run, workers, tmp_path, dict(os.environ), jobs.Screen()
        )
        pool.run(report)
        return pool

    return run


def append(word):
    return f"open('order', 'a').write({word!r})"


def test_order(make_job, run, tmp_path, capsys):
    first = make_job('first', append('a'), append('b'))
    second = make_job('second', append('c'), after=('first',))
    pool = run(second, first, report=lambda job: f', {job.name[0]} reported')
    assert (tmp_path / 'order').read_text() == 'abc'
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r'first: done in \d+ s, f reported', lines[0])
    assert lines[1].startswith('[0:0')
    assert pool.left() == 0
    log = (tmp_path / 'first.log').read_text().splitlines()
    assert log[0].startswith(f'$ {sys.executable}')


def test_no_more_than_the_workers_at_a_time(make_job, run, tmp_path):
    code = (
        'import os, time, pathlib\n'
        "mine = pathlib.Path(f'running-{os.getpid()}'); mine.touch()\n"
        "n = len(list(pathlib.Path().glob('running-*')))\n"
        "open('most', 'a').write(f'{n}\\n')\n"
        'time.sleep(0.4); mine.unlink()'
    )
    run(*(make_job(f'job {i}', code) for i in range(4)), workers=2)
    counts = set((tmp_path / 'most').read_text().split())
    assert max(counts) == '2'


def test_failure_shows_the_log_and_stops_the_others(jobs, make_job, run):
    slow = make_job('slow', 'import time; time.sleep(60)')
    bad = make_job(
        'bad',
        "print('working'); raise SystemExit('no disk left')",
        append('never'),
    )
    start = time.monotonic()
    with pytest.raises(jobs.JobError) as failure:
        run(slow, bad)
    assert time.monotonic() - start < 20
    message = str(failure.value)
    assert message.startswith('bad failed with status 1. The end of ')
    assert str(bad.log) in message
    assert '  | working' in message
    assert message.endswith('  | no disk left')


def test_epoch_is_read_from_the_log(make_job, tmp_path):
    job = make_job('train', run=tmp_path / 'run', epochs=5)
    assert job.epoch() == 0
    folder = tmp_path / 'run/2020/vis_data'
    folder.mkdir(parents=True)
    entries = [dict(loss=0.5, epoch=1), dict(loss=0.4, epoch=2)]
    text = '\n'.join(map(json.dumps, entries)) + '\n{"loss": 0.3, "epo'
    (folder / 'scalars.json').write_text(text)
    assert job.epoch() == 2


def test_updates_are_read_from_the_logs_of_a_resumed_run(make_job, tmp_path):
    job = make_job('train', run=tmp_path / 'run', epochs=40)
    for start, steps in (('2021', (30, 40)), ('2020', (10, 20))):
        folder = tmp_path / f'run/{start}/vis_data'
        folder.mkdir(parents=True)
        entries = [dict(loss=0.5, iter=i, step=i) for i in steps]
        entries.append(dict(mIoU=0.1, step=99))
        text = '\n'.join(map(json.dumps, entries))
        (folder / 'scalars.json').write_text(text)
    assert job.epoch() == 40


def test_time_left(jobs, make_job, tmp_path):
    names = ('a', 'b', 'c', 'd')
    plan = [make_job(n, '', seconds=10.0) for n in names]
    plan[3].after = ('a',)
    pool = jobs.Pool(plan, 2, tmp_path, {}, jobs.Screen())
    assert pool.left() == 20  # 40 seconds of work for two
    pool._done.update('bc')
    plan[1].took = plan[2].took = 20.0
    # Slower than planned (60 seconds instead of 40, with the plan's 20 of
    # the start), and d must wait for a.
    assert pool.left() == 1.5 * 20
    pool._done.add('a')
    plan[0].took = 20.0
    assert pool.left() == 10 * (60 + 20) / (30 + 20)
